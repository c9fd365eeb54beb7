"""Runs of `train.py` for a benchmark: several at once, each scored at its end, and gone on with where
they were interrupted."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plot import number
from settings.config import ConfigError

ROOT = Path(__file__).resolve().parent.parent
EPISODES = 20
EVALUATION_SEED = 1_000_000  # added to that of the run, whose own evaluations play other episodes
MEASURES = {
    "training": "last 100 training episodes",
    "final": f"final weights, {EPISODES} greedy episodes",
    "best": f"best checkpoint, {EPISODES} greedy episodes",
}
_ENDED = ("finished", "solved", "max_minutes")


class Run(NamedTuple):
    """A run and its folder, beside which lie its output and its scores.

    `flags`: those of train.py, beside the three that the other fields stand for.
    """

    env: str
    seed: int
    folder: Path
    flags: tuple[str, ...] = ()

    @property
    def scores(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    def row(self) -> dict[str, Any]:
        """What the run reached, as `evaluate` wrote it."""
        return json.loads(self.scores.read_text())

    def ended(self) -> bool:
        summary = self.folder / "summary.json"
        return summary.exists() and json.loads(summary.read_text())["exit_reason"] in _ENDED

    def start(self) -> subprocess.Popen:
        """Start training, or go on with it from its last checkpoint."""
        new = ["--env", self.env, "--seed", str(self.seed), "--run_dir", str(self.folder)]
        resumed = (self.folder / "checkpoints").exists()
        command = ["--resume", str(self.folder)] if resumed else [*new, *self.flags]
        with open(self.folder.with_name(f"{self.folder.name}.log"), "a") as output:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *command],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            )  # fmt: skip


def named(env: str, seed: int) -> str:
    """The name of the folder of a run."""
    return f"{env.replace('/', '-').replace(':', '-')}__s{seed}"


def complete(runs: Sequence[Run], at_once: int) -> list[str]:
    """Train and score those of the runs that are not scored yet, so many at once.

    Returns: a line for each run that failed; the others go on.
    """
    for run in runs:  # those whose evaluation was interrupted
        if run.ended() and not run.scores.exists():
            evaluate(run)
    return train_all([run for run in runs if not run.scores.exists()], at_once, evaluate)


def train_all(runs: Sequence[Run], at_once: int, ended: Callable[[Run], None]) -> list[str]:
    """Train the runs, so many at once, and call `ended` after each.

    Returns: a line for each run that failed; the others go on.
    """
    waiting, failed = list(runs), []
    running: dict[Run, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                run = waiting.pop(0)
                running[run] = run.start()
            time.sleep(0.1)
            for run in [run for run, process in running.items() if process.poll() is not None]:
                code = running.pop(run).returncode
                if run.ended():
                    ended(run)
                else:
                    failed.append(f"train.py ended with {code}: see {run.folder}.log")
    finally:
        for process in running.values():
            process.terminate()  # they save a checkpoint, from which the next call goes on
        for process in running.values():
            process.wait()
    return failed


def evaluate(run: Run) -> None:
    """Score the final and the best weights of a run, and write what it reached.

    Raises:
        ConfigError: where the run was too short for an episode.
    """
    from evaluation.load import load_policy
    from evaluation.score import score

    summary = json.loads((run.folder / "summary.json").read_text())
    row: dict[str, Any] = {"env": run.env, "seed": run.seed}
    row["training"] = summary["train_return_last100"]
    if row["training"] is None:
        raise ConfigError(f"no episode has ended in {run.folder}: give more --steps")
    for measure, checkpoint in (("final", "last"), ("best", "best")):
        policy = load_policy(run.folder, checkpoint, trust=True)
        scores = score(policy.model, policy.config, EPISODES, EVALUATION_SEED + run.seed)
        row[measure] = scores.mean()
        row |= {f"{measure}/{name}": value for name, value in scores.means().items()}
    row |= {name: summary[name] for name in ("global_step", "time_s", "device", "project")}
    part = run.scores.with_suffix(".part")
    part.write_text(json.dumps(row) + "\n")
    part.replace(run.scores)
    print(f"{run.env}, seed {run.seed}: "
          + ", ".join(f"{name} {number(row[name])}" for name in MEASURES), flush=True)  # fmt: skip


def begin(out: Path, protocol: dict[str, Any]) -> None:
    """Make the folder of the runs, and note there with what they are trained.

    Raises:
        ConfigError: where the folder's runs were trained with something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "protocol.json"
    if path.exists() and json.loads(path.read_text()) != protocol:
        raise ConfigError(
            f"{out} has runs of {path.read_text().strip()}, but now asked for are"
            f" {json.dumps(protocol)}: give the same, or another --out"
        )
    path.write_text(json.dumps(protocol) + "\n")


def machine() -> str:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return f"{os.cpu_count()} cores, {model}"


def commit() -> str:
    """The commit of the sources, marked where they have been changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "none"
