"""What becomes of runs that are disturbed: `python benchmarks/chaos.py NAME ...`.

Each experiment of `EXPERIMENTS` disturbs real runs of train.py time and again, and gives a row of the
table that is printed; those that were not as they should be, or cannot be done, are named at the end, and the
exit status is 1 then. Without names all of them are done.
Those of `cluster_faults` need root, because they make machines of their own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, NamedTuple

import lost_samplers
import numpy as np
import runs
import tyro
from cluster_faults import CLUSTER_FAULTS
from crowd import CROWDS
from disturbed import SMALL, START_S, Row, Training, end_all
from namespaces import NoNamespaces

from common.sources import ROOT


@dataclass
class Arguments:
    """Disturb runs, and print what became of them."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The experiments; without any: all of them. Those of networks and machines need root."""
    times: int | None = None
    """How often each is done. Default: as its table says."""


class Phase(NamedTuple):
    """Something that a run does: the flags for it to take long, and how it shows that it begins.

    `seconds`: then the signal comes after so many, drawn evenly between the two.
    """

    flags: tuple[str, ...]
    begins: Callable[[Training], object]
    seconds: tuple[float, float]


def has_started(run: Training) -> bool:
    return run.has("checkpoints/update-*")


PHASES = {
    "connecting": Phase(SMALL, lambda run: run.has("metrics.jsonl"), (0, 1)),
    "compiling": Phase((*SMALL, "--compile", "on"), has_started, (0, 1)),
    "collecting": Phase(
        ("--env", "tests.toy_envs:Slow", "--env_num", "2", "--batch_size", "2048",
         "--minibatch_size", "64", "--samplers", "2", "--compile", "off"),
        has_started, (0, 3),
    ),
    "learning": Phase((*SMALL, "--update_epochs", "100000"), has_started, (1, 3)),
    "evaluating": Phase(
        ("--env", "tests.toy_envs:Slow", "--env_num", "2", "--batch_size", "64", "--minibatch_size",
         "64", "--train_total_steps", "64", "--test_episodes", "100000", "--samplers", "1",
         "--compile", "off"),
        has_started, (4, 6),
    ),
    "saving": Phase(
        (*SMALL, "--hidden_sizes", "1500", "1500", "--checkpoint_minutes", "1e-6", "--update_epochs", "1"),
        lambda run: run.has("checkpoints/update-*[1-9]") and run.has("checkpoints/.update-*.tmp"),
        (0, 0.2),
    ),
}  # fmt: skip


def sigterm(phase: str, times: int) -> Row:
    """SIGTERM while a run is in a phase: how soon it ends, with a checkpoint and without orphans."""
    flags, begins, bounds = PHASES[phase]
    seconds, good = [], 0
    for number in range(times):
        with tempfile.TemporaryDirectory() as folder:
            run = Training(Path(folder), *flags)
            try:
                run.wait_for(functools.partial(begins, run), START_S)
            except RuntimeError as error:
                wrong = [str(error)]
            else:
                time.sleep(random.Random(number).uniform(*bounds))
                took, wrong = run.terminate()
                seconds.append(took)
        good += not wrong
        for sentence in wrong:
            print(f"sigterm_{phase}, run {number}: {sentence}", file=sys.stderr)
    measured = "no run came to it"
    if seconds:
        p95 = np.percentile(seconds, 95)
        measured = f"ends after {p95:.1f} s (p95), {max(seconds):.1f} s at most"
    return Row(f"sigterm_{phase}", good, times, measured)


def saving_killed(times: int) -> Row:
    """SIGKILL while checkpoints are saved, on a real disk, over what earlier kills left behind."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.common.killed_saver", folder, str(times)],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
    resumed, left_behind = map(int, done.stdout.split())
    return Row("saving_killed", resumed, times, f"{left_behind} kills left files behind")


def learner_paused(times: int) -> Row:
    """SIGSTOP of the learner for 60 s, then SIGCONT: whether it goes on, and with which samplers."""
    good, restarts = 0, 0
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            run = Training(
                Path(folder), *SMALL, "--sampler_timeout", "10", "--train_total_steps", "1e9"
            )
            run.wait_for(lambda run=run: len(run.rows()) > 20, START_S)
            os.kill(run.process.pid, signal.SIGSTOP)
            time.sleep(60)
            before = len(run.rows())
            os.kill(run.process.pid, signal.SIGCONT)
            with contextlib.suppress(RuntimeError):
                run.wait_for(lambda run=run, n=before: len(run.rows()) > n + 20, 30)
                good += not run.terminate()[1]
            restarts += run.rows()[-1]["restarts"]
    return Row("learner_paused", good, times, f"{restarts} samplers restarted")


class Experiment(NamedTuple):
    """`run` is given how often the experiment is to be done, which is `times` by default."""

    run: Callable[[int], Row]
    times: int


EXPERIMENTS = {
    **{f"sigterm_{phase}": Experiment(functools.partial(sigterm, phase), 10) for phase in PHASES},
    "saving_killed": Experiment(saving_killed, 200),
    "learner_paused": Experiment(learner_paused, 1),
    "by_chance_raise": Experiment(functools.partial(lost_samplers.by_chance, "raise"), 1),
    "by_chance_sleep": Experiment(functools.partial(lost_samplers.by_chance, "sleep"), 1),
    "random_kills": Experiment(lost_samplers.random_kills, 1),
    "straggler": Experiment(lost_samplers.straggler, 1),
    **{name: Experiment(*experiment) for name, experiment in CROWDS.items()},
    **{name: Experiment(run, 1) for name, run in CLUSTER_FAULTS.items()},
}


def main() -> None:
    arguments = tyro.cli(Arguments)
    unknown = set(arguments.names) - EXPERIMENTS.keys()
    if unknown:
        sys.exit(
            f"no experiment {', '.join(sorted(unknown))}: give some of {', '.join(EXPERIMENTS)}"
        )
    print(f"{runs.machine()}, {date.today()}\n")
    print("| experiment | as it should be | measured |\n|---|---|---|")
    undone, wrong = [], []
    for name in arguments.names or EXPERIMENTS:
        row = done(name, arguments.times)
        if row is None:
            undone.append(name)
            continue
        if row.good < row.times:
            wrong.append(name)
        print(f"| {row.name} | {row.good} of {row.times} | {row.measured} |", flush=True)
    if wrong:
        print(f"\nnot as it should be: {', '.join(wrong)}", file=sys.stderr)
    if undone:
        print(f"\ncannot be done, for the reasons above: {', '.join(undone)}", file=sys.stderr)
    if wrong or undone:
        sys.exit(1)


def done(name: str, often: int | None) -> Row | None:
    """The row of an experiment; None of one that cannot be done on this machine.

    Where it fails, the others are done nevertheless. Its runs are ended in any case.
    """
    run, times = EXPERIMENTS[name]
    try:
        return run(often or times)
    except Exception as error:
        hidden = error.__context__  # where what had ended us could not be cleaned up after
        while hidden is not None:
            if isinstance(hidden, KeyboardInterrupt | SystemExit):
                raise hidden from None
            hidden = hidden.__context__
        if isinstance(error, NoNamespaces):
            print(f"{name}: {error}", file=sys.stderr)
            return None
        traceback.print_exc()
        return Row(name, 0, often or times, f"failed: {type(error).__name__}")
    finally:
        end_all()


if __name__ == "__main__":
    with runs.command("chaos.py"):
        main()
