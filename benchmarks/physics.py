"""What a step of each MuJoCo task costs, by engine: `python benchmarks/physics.py`.

gymnasium, this project's loop, EnvPool and mjbatch step the same tasks in one thread under the same
small random actions, resets included. They take turns, so that a noisy machine is noisy for all. Each
runs in a process of its own, EnvPool and mjbatch in virtual environments under `.peers/`. mjbatch
steps the physics alone: its observations and rewards are this project's, without contact forces.
Writes `<out>.md` and `<out>.json`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import runs
from peers import PROGRAMS, Failed, Peer, install

from envs.mujoco.tasks import TASKS

GYMNASIUM = "gymnasium[mujoco]==1.4.0"
PEERS = {
    name: Peer(name, packages, "step_mujoco.py", "", ())
    for name, packages in {
        "envpool": ("envpool==1.2.5", GYMNASIUM),
        "mjbatch": ("mjbatch==0.1.4", GYMNASIUM),
    }.items()
}
NAMES = {"gymnasium": "gymnasium", "project": "this project", "envpool": "EnvPool",
         "mjbatch": "mjbatch"}  # fmt: skip


@dataclass
class Arguments:
    """Compare what a step of MuJoCo's tasks costs."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """The tasks to step."""
    env_num: int = 32
    """Robots that are stepped together."""
    seconds: float = 0.4
    """Seconds to measure, per turn."""
    turns: int = 5
    """Turns of each."""
    out: Path = Path("benchmarks/results/physics")
    """Where to write, without the ending."""


class Engine:
    """A process that steps tasks when it is asked to."""

    def __init__(self, name: str, envs: int):
        python = str(install(PEERS[name])) if name in PEERS else sys.executable
        self._process = subprocess.Popen(
            [python, str(PROGRAMS / "step_mujoco.py"), name, str(envs)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def cost(self, task: str, seconds: float) -> float:
        """Microseconds per step of one robot."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{task} {seconds}\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise Failed(f"{self._process.args} ended with {self._process.wait()} at {task}")
        return float(answer)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(arguments: Arguments) -> list[dict[str, float | str]]:
    """Of each task the median cost by engine, in microseconds per step of one robot."""
    engines = {name: Engine(name, arguments.env_num) for name in NAMES}
    rows = []
    try:
        for task in arguments.tasks:
            costs: dict[str, list[float]] = {name: [] for name in engines}
            for _ in range(arguments.turns):
                for name, engine in engines.items():
                    costs[name].append(engine.cost(task, arguments.seconds))
            rows.append({"task": task} | {n: statistics.median(c) for n, c in costs.items()})
            print(task, *(f"{name} {rows[-1][name]:.0f}" for name in NAMES), flush=True)
    finally:
        for engine in engines.values():
            engine.close()
    return rows


def write(rows: list[dict[str, float | str]], arguments: Arguments) -> str:
    machine = f"{runs.machine()}, {date.today()}"
    lines = [
        "# MuJoCo's tasks, microseconds per step of one robot", "",
        f"{machine}; one thread, {arguments.env_num} robots; medians of {arguments.turns} turns.", "",
        f"| task | {' | '.join(NAMES.values())} |", "|---" * (len(NAMES) + 1) + "|",
    ]  # fmt: skip
    lines += [f"| {row['task']} | {' | '.join(f'{row[n]:.1f}' for n in NAMES)} |" for row in rows]
    text = "\n".join(lines) + "\n"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text)
    content = {"machine": machine, "env_num": arguments.env_num, "rows": rows}
    arguments.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    return text


def main() -> None:
    import tyro

    arguments = tyro.cli(Arguments)
    unknown = sorted(set(arguments.tasks) - TASKS.keys())
    if unknown:
        sys.exit(f"physics.py: no such task: {', '.join(unknown)}; there are {', '.join(TASKS)}")
    try:
        print(write(measure(arguments), arguments))
    except Failed as failure:
        sys.exit(f"physics.py: {failure}")


if __name__ == "__main__":
    main()
