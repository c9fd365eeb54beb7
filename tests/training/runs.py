"""Small runs in the tests' own process, which end as if they were killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from settings.sources import parse
from train import check
from training.folder import run_folder
from training.run import Run
from training.signals import STOPS
from training.summary import weights_digest

SMALL = (
    "--env_num", "4", "--batch_size", "64", "--minibatch_size", "32", "--update_epochs", "2",
    "--compile", "off", "--samplers", "0", "--train_total_steps", "1280", "--checkpoint_share", "0.15",
    "--test_every_steps", "1000000",
)  # fmt: skip
UPDATES_PER_CHECKPOINT = 3  # of SMALL


@contextmanager
def running(*flags: str) -> Iterator[Run]:
    """A run that is open; it leaves nothing but what it has saved by itself."""
    handlers = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGALRM)}
    threads = torch.get_num_threads()
    config = parse(flags)
    try:
        with run_folder(config) as run_dir:
            run = Run(config, run_dir, "cpu", check(config))
            try:
                yield run
            finally:
                assert run._opened is not None
                run._opened.close()
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def train_until(run: Run, update: int) -> str:
    """Train until so many updates are done, or the run is over; return the weights' hash."""
    for rollout in run.collect():
        metrics = run.agent.learn(rollout, run.progress())
        if run.record(rollout, metrics, {}) is not None or run.agent.update == update:
            break
    return weights_digest(run.agent)


def weights_after(update: int, *flags: str) -> str:
    """The hash of the weights of a run that is killed after so many updates."""
    with running(*flags) as run:
        return train_until(run, update)


def saved_updates(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("update-*"))
