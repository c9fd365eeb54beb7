"""Runs of `train.py` for a benchmark: several at once, each scored at its end, and gone on with where
they were interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from common.errors import UserError
from common.sources import ROOT
from common.statistics import Estimate
from common.terminal import exit_when_asked
from plot import number
from settings.config import ConfigError
from settings.flags import read_flags
from settings.store_url import hide_passwords

T = TypeVar("T")
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

    def summary(self) -> dict[str, Any] | None:
        """summary.json of a run that has come to its end; None of any other."""
        path = self.folder / "summary.json"
        if not path.exists():
            return None
        summary = json.loads(path.read_text())
        return summary if summary["exit_reason"] in _ENDED else None

    def start(self) -> subprocess.Popen:
        """Start training, or go on with it from its last checkpoint."""
        new = ["--env", self.env, "--seed", str(self.seed), "--run_dir", str(self.folder)]
        resumed = (self.folder / "config.yaml").exists()  # also before its first checkpoint
        command = ["--resume", str(self.folder)] if resumed else [*new, *self.flags]
        with open(self.folder.with_name(f"{self.folder.name}.log"), "a") as output:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *command],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C comes to this process alone, which ends the others
            )  # fmt: skip


def named(env: str, seed: int | str) -> str:
    """The name of the folder of a run; with "" in the place of the seed, what those of all seeds begin with."""
    return f"{env.replace('/', '-').replace(':', '-')}__s{seed}"


def complete(runs: Sequence[Run], at_once: int) -> list[str]:
    """Train and score those of the runs that are not scored yet, so many at once.

    Returns: a line for each run that failed, or that cannot be scored; the others go on.
    """
    unscored: list[str] = []

    def scored(run: Run) -> None:
        try:
            evaluate(run)
        except UserError as error:
            unscored.append(str(error))

    left = [run for run in runs if not run.scores.exists()]
    for run in left:  # those whose evaluation was interrupted
        scored(run)
    failed = train_all([run for run in left if run.summary() is None], at_once, scored)
    return failed + unscored


def train_all(runs: Iterable[Run], at_once: int, ended: Callable[[Run], None]) -> list[str]:
    """Train the runs, so many at once, and call `ended` after each, also where it has failed.

    The cores are shared out evenly; a run keeps to its share. The next run is taken only when there
    is room for it, so `ended` may decide what that is.

    Returns: a line for each run that failed; the others go on.
    """
    waiting, failed = iter(runs), []
    running: dict[Run, tuple[subprocess.Popen, set[int]]] = {}
    own = os.sched_getaffinity(0)
    free = _shares(sorted(own), at_once)
    try:
        while True:
            while free and (run := next(waiting, None)) is not None:
                cores = free.pop(0)
                os.sched_setaffinity(0, cores)  # which the new process inherits
                running[run] = run.start(), cores
                os.sched_setaffinity(0, own)
            if not running:
                return failed
            time.sleep(0.1)
            for run in [run for run, (process, _) in running.items() if process.poll() is not None]:
                process, cores = running.pop(run)
                free.append(cores)
                if run.summary() is None:
                    failed.append(f"train.py ended with {process.returncode}: see {run.folder}.log")
                ended(run)
    finally:
        for process, _ in running.values():
            process.terminate()  # they save a checkpoint, from which the next call goes on
        for process, _ in running.values():
            process.wait()


def _shares(cores: Sequence[int], count: int) -> list[set[int]]:
    return [set(cores[i::count]) or {cores[i % len(cores)]} for i in range(count)]


def evaluate(run: Run) -> None:
    """Score the final and the best weights of a run that has come to its end, and write what it reached.

    Raises:
        UserError: where the run was too short for an episode, or has no weights to score.
    """
    from evaluation.load import load_policy
    from evaluation.score import score

    summary = run.summary()
    if summary is None:
        return
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
    row["origin"] = {"commit": commit(), "machine": machine(), "date": str(date.today())}
    part = run.scores.with_suffix(".part")
    part.write_text(json.dumps(row) + "\n")
    part.replace(run.scores)
    print(f"{run.env}, seed {run.seed}: "
          + ", ".join(f"{name} {number(row[name])}" for name in MEASURES), flush=True)  # fmt: skip


@contextlib.contextmanager
def command(program: str) -> Iterator[None]:
    """A benchmark as a command: SIGTERM and the end of the terminal end what it has started, as Ctrl-C
    does, and an error that the user can mend is one line."""
    exit_when_asked()
    try:
        yield
    except UserError as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def typed(kind: type[T]) -> tuple[T, list[str]]:
    """The arguments of a benchmark's command line, and the flags of train.py, which follow `--`.

    Raises:
        ConfigError: for a benchmark's flag that is there twice: the last one would count alone.
    """
    import tyro

    hide_passwords(sys.argv)  # what is typed is written into the results
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    words = [word.partition("=")[0] for word in sys.argv[1:split] if word.startswith("--")]
    flags = ["--" + word[2:].replace("-", "_") for word in words]
    for flag in flags:
        if flags.count(flag) > 1:
            raise ConfigError(f"{flag} is given twice: give it once, with all of its values")
    return tyro.cli(kind, args=sys.argv[1:split]), sys.argv[split + 1 :]


def refuse_counts(arguments: Any, *names: str) -> None:
    """Refuse arguments that ask for nothing, or for the same run twice.

    Args:
        names: of the arguments that are to be one at least, or to hold one value at least.

    Raises:
        ConfigError: for the first of them.
    """
    for name in names:
        value = getattr(arguments, name)
        listed = [] if value is None or isinstance(value, int) else list(value)
        if value is not None and (value if isinstance(value, int) else len(listed)) < 1:
            raise ConfigError(f"{name} is {value}, but must be one at least")
        if len(set(listed)) < len(listed):
            words = " ".join(map(str, listed))
            raise ConfigError(
                f"{name} is {words}, but each can be given once: leave the others out"
            )


def refuse(flags: Sequence[str], decided: Mapping[str, str]) -> None:
    """Refuse flags of train.py that a benchmark decides on.

    Args:
        decided: setting -> the benchmark's own flag for it. Those of the run's folder are `--out`'s.

    Raises:
        ConfigError: for such a flag, or one that train.py would not read.
    """
    decided = {**decided, "run_dir": "--out", "resume": "--out"}
    for name, value in read_flags(flags).items():
        if name in decided:
            raise ConfigError(f"--{name} {value} is decided by {decided[name]}: leave the flag out")


def begin(out: Path, protocol: dict[str, Any]) -> None:
    """Make the folder of the runs, and note there with what they are trained.

    Raises:
        ConfigError: where the folder cannot be made, or its runs were trained with something else.
    """
    path = out / "protocol.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"out {out} cannot be made: {error.strerror}; give another --out"
        ) from None
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


def origins(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """By which commit, on which machine and on which day runs were scored, which is when their training ends
    unless that was interrupted: all of them, where they differ."""
    notes = [row.get("origin", {}) for row in rows]
    return {
        name: ", ".join(sorted({note.get(name, "not noted") for note in notes})) or "none"
        for name in ("commit", "machine", "date")
    }


def as_numbers(found: Estimate) -> dict[str, float | None]:
    """An interquartile mean and its interval, as JSON has them."""
    names = ("iqm", "low", "high")
    return {n: None if np.isnan(v) else float(v) for n, v in zip(names, found, strict=True)}


def interval(value: Mapping[str, Any]) -> str:
    return "-" if value["low"] is None else f"{number(value['low'])} to {number(value['high'])}"
