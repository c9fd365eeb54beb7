"""What training reaches, by one protocol: `python benchmarks/returns.py --envs Hopper-v4 --seeds 1 2 3`.

Each environment is trained with each seed by `train.py`, with the flags that follow `--`. Then the final
and the best checkpoint play 20 greedy episodes each, none of which the run has seen. Of the seeds the
interquartile mean is given with a 95% bootstrap interval, the mean and every seed, for each of these and
for the last 100 training episodes. Writes `<out>.md`, `<out>.json` and `<out>_<family>.png` for each
family of environments; the runs are in the folder `<out>`. The same command goes on where it was
interrupted: a run that has ended is not run again.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.statistics import Estimate, estimate, iqm_estimate
from envs import family_of
from plot import RETURN, curves_of, draw, number
from settings.config import ConfigError
from settings.experiments import group

ROOT = Path(__file__).resolve().parent.parent
EPISODES = 20
EVALUATION_SEED = 1_000_000  # added to that of the run, whose own evaluations play other episodes
ENDED = ("finished", "solved", "max_minutes")
PUBLISHED = "best public PPO figure we know of"
FIGURES = {
    "HalfCheetah-v4": 5784, "Hopper-v4": 2680, "Walker2d-v4": 3927, "Ant-v4": 2434,
    "Humanoid-v4": 1726, "Swimmer-v4": 282, "LunarLander-v3": 242,
    "LunarLanderContinuous-v3": 271, "BipedalWalker-v3": 288,
}  # fmt: skip
MEASURES = {
    "training": "last 100 training episodes",
    "final": f"final weights, {EPISODES} greedy episodes",
    "best": f"best checkpoint, {EPISODES} greedy episodes",
}


@dataclass
class Arguments:
    """Train environments with several seeds and report the returns. Flags of train.py follow `--`."""

    envs: tuple[str, ...]
    """The environments."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """The seeds."""
    steps: int = 1_000_000
    """Environment steps of each run."""
    at_once: int = 1
    """Runs at the same time; they share the cores."""
    out: Path = Path("benchmarks/results/returns")
    """Where to write, without the ending."""


class Run(NamedTuple):
    """A run of the protocol and its folder, beside which lie its output and its scores."""

    env: str
    seed: int
    folder: Path

    @property
    def scores(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    def ended(self) -> bool:
        summary = self.folder / "summary.json"
        return summary.exists() and json.loads(summary.read_text())["exit_reason"] in ENDED

    def start(self, flags: Sequence[str]) -> subprocess.Popen:
        """Start training, or go on with it from its last checkpoint."""
        new = ["--env", self.env, "--seed", str(self.seed), "--run_dir", str(self.folder), *flags]
        resumed = (self.folder / "checkpoints").exists()
        command = ["train.py", *(["--resume", str(self.folder)] if resumed else new)]
        with open(self.folder.with_name(f"{self.folder.name}.log"), "a") as output:
            return subprocess.Popen(
                [sys.executable, str(ROOT / command[0]), *command[1:]],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            )  # fmt: skip


def train_all(
    runs: Sequence[Run], flags: Sequence[str], at_once: int, ended: Callable[[Run], None]
) -> list[str]:
    """Train the runs, so many at once, and call `ended` after each.

    Returns: a line for each run that failed; the others go on.
    """
    waiting, failed = list(runs), []
    running: dict[Run, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                run = waiting.pop(0)
                running[run] = run.start(flags)
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
    row |= {name: summary[name] for name in ("global_step", "time_s", "device", "project")}
    part = run.scores.with_suffix(".part")
    part.write_text(json.dumps(row) + "\n")
    part.replace(run.scores)
    print(f"{run.env}, seed {run.seed}: "
          + ", ".join(f"{name} {number(row[name])}" for name in MEASURES), flush=True)  # fmt: skip


def begin(arguments: Arguments, flags: Sequence[str]) -> None:
    """Check the arguments, and note in the runs' folder with what they are trained.

    Raises:
        ConfigError: where there is nothing to run, or the folder's runs were trained with something
            else.
    """
    for name, least in (("seeds", len(arguments.seeds)), ("envs", len(arguments.envs)),
                        ("at_once", arguments.at_once)):  # fmt: skip
        if least < 1:
            raise ConfigError(f"{name} is {getattr(arguments, name)}, but must be one at least")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path, protocol = (
        arguments.out / "protocol.json",
        {"steps": arguments.steps, "flags": list(flags)},
    )
    if path.exists() and json.loads(path.read_text()) != protocol:
        raise ConfigError(
            f"{arguments.out} has runs of {path.read_text().strip()}, but now asked for are"
            f" {json.dumps(protocol)}: give the same steps and flags, or another --out"
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


def as_numbers(found: Estimate) -> dict[str, float | None]:
    names = ("iqm", "low", "high")
    return {n: None if np.isnan(v) else float(v) for n, v in zip(names, found, strict=True)}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each environment and measure: interquartile mean, interval, mean, every seed; and for each
    family the interquartile mean of the shares of the published figures, over all its runs."""
    values: dict[str, dict[str, np.ndarray]] = {}
    families: dict[str, list[str]] = defaultdict(list)
    for env in dict.fromkeys(row["env"] for row in rows):
        mine = [row for row in rows if row["env"] == env]
        values[env] = {name: np.array([row[name] for row in mine], float) for name in MEASURES}
        if env in FIGURES:
            families[family_of(env)].append(env)
    environments = {
        env: {
            name: as_numbers(estimate(found, "iqm"))
            | {"mean": float(found.mean()), "seeds": found.tolist()}
            for name, found in measures.items()
        }
        for env, measures in values.items()
    }
    shares = {
        name: {
            measure: as_numbers(iqm_estimate([values[env][measure] / FIGURES[env] for env in envs]))
            for measure in MEASURES
        }
        for name, envs in families.items()
        if len(envs) > 1
    }
    return {"environments": environments, "shares_of_published": shares}


def markdown(found: dict[str, Any], title: str) -> str:
    lines = [
        "# Returns", "", title, "",
        f"| environment | measure | IQM | 95% interval | mean | every seed | {PUBLISHED} |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for env, measures in found["environments"].items():
        published = number(FIGURES[env]) if env in FIGURES else "-"
        for name, value in measures.items():
            seeds = ", ".join(map(number, value["seeds"]))
            lines.append(
                f"| {env} | {MEASURES[name]} | {number(value['iqm'])} | {interval(value)}"
                f" | {number(value['mean'])} | {seeds} | {published} |"
            )
    for family, measures in found["shares_of_published"].items():
        for name, value in measures.items():
            lines.append(
                f"| all of {family}, as shares of the published figures | {MEASURES[name]}"
                f" | {number(value['iqm'])} | {interval(value)} | - | - | 1 |"
            )
    return "\n".join(lines) + "\n"


def interval(value: dict[str, Any]) -> str:
    return "-" if value["low"] is None else f"{number(value['low'])} to {number(value['high'])}"


def draw_families(runs: Sequence[Run], out: Path) -> None:
    """The learning curves of each family of environments, beside the published figures."""
    families: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        families[family_of(run.env)].append(run)
    for name, mine in families.items():
        panels = curves_of(group([run.folder for run in mine]), RETURN)
        fewest = min(
            len(c) for experiments in panels.columns.values() for c in experiments.values()
        )
        lines = {
            env: [(PUBLISHED, float(FIGURES[env]))] for env in panels.columns if env in FIGURES
        }
        path = out.with_name(f"{out.name}_{name}.png")
        draw([panels], path, aggregate="iqm" if fewest > 2 else "mean", lines=lines)
        print(path)


def report(runs: Sequence[Run], arguments: Arguments, flags: Sequence[str]) -> None:
    rows = [json.loads(run.scores.read_text()) for run in runs]
    sources = sorted({row["project"]["sources"] for row in rows})
    about = {
        "commit": commit(), "machine": machine(), "date": str(date.today()),
        "steps": arguments.steps, "at_once": arguments.at_once, "flags": list(flags),
        "sources": sources,
    }  # fmt: skip
    found = summarise(rows)
    given = f", with {' '.join(flags)}" if flags else ""
    title = (
        f"{arguments.steps:,} steps{given}; {about['machine']}, {arguments.at_once} at once,"
        f" {about['date']}, commit {about['commit']}, sources {', '.join(sources)}."
    )
    text = markdown(found, title)
    arguments.out.with_name(f"{arguments.out.name}.md").write_text(text)
    content = about | found | {"runs": rows}
    path = arguments.out.with_name(f"{arguments.out.name}.json")
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(text)
    draw_families(runs, arguments.out)


def main() -> None:
    import tyro

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = tyro.cli(Arguments, args=sys.argv[1:split])
    flags = sys.argv[split + 1 :]
    try:
        begin(arguments, flags)
        runs = [
            Run(env, seed, arguments.out / f"{env.replace('/', '-').replace(':', '-')}__s{seed}")
            for env in arguments.envs
            for seed in arguments.seeds
        ]
        for run in runs:  # those whose evaluation was interrupted
            if run.ended() and not run.scores.exists():
                evaluate(run)
        left = [run for run in runs if not run.scores.exists()]
        all_flags = [*flags, "--train_total_steps", str(arguments.steps)]
        failed = train_all(left, all_flags, arguments.at_once, evaluate)
        done = [run for run in runs if run.scores.exists()]
        if done:
            report(done, arguments, flags)
    except UserError as error:
        sys.exit(f"returns.py: {error}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
