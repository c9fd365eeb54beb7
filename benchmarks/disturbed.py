"""Runs of train.py that are to be disturbed, and the rows that tell what became of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from common import checkpoint
from common.errors import UserError
from common.sources import ROOT

START_S = 120.0  # for a run to come to the phase in which it is disturbed
END_S = 60.0  # after which an end is no longer waited for
SMALL = ("--env", "CartPole-v1", "--compile", "off", "--samplers", "2")


class Row(NamedTuple):
    """A row of the table: the experiment, how often it went as it should, and what was measured."""

    name: str
    good: int
    times: int
    measured: str


_TRAININGS: list[Training] = []  # of this process


def end_all() -> None:
    """End all runs with their processes, also those that are stopped."""
    for training in _TRAININGS:
        if training.process.poll() is None:
            os.killpg(training.process.pid, signal.SIGKILL)
            training.process.wait()
    _TRAININGS.clear()


class Training:
    """A run of train.py, in a session of its own; `end_all` ends those that live.

    Args:
        folder: an empty folder.
        flags: of train.py.
        start: starts a command, as `subprocess.Popen` does.
    """

    def __init__(
        self, folder: Path, *flags: str, start: Callable[..., subprocess.Popen] = subprocess.Popen
    ):
        self.run_dir, self._output = folder / "run", folder / "output"
        with open(self._output, "w") as output:
            self.process = start(
                [sys.executable, "train.py", *flags, "--run_dir", str(self.run_dir)],
                cwd=ROOT, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        _TRAININGS.append(self)

    def rows(self) -> list[dict]:
        path = self.run_dir / "metrics.jsonl"
        return [json.loads(line) for line in path.open()] if path.exists() else []

    def said(self) -> str:
        """What it has printed."""
        return self._output.read_text()

    def has(self, pattern: str) -> bool:
        return any(self.run_dir.glob(pattern))

    def wait_for(self, condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or self.process.poll() is not None:
                with contextlib.suppress(ProcessLookupError):  # all its processes have ended
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                raise RuntimeError(f"waited in vain for the run:\n{self._output.read_text()}")
            time.sleep(0.01)

    def terminate(self) -> tuple[float, list[str]]:
        """End the run by SIGTERM: the seconds that took, and what was wrong."""
        others = psutil.Process(self.process.pid).children(recursive=True)
        start, wrong = time.monotonic(), []
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            wrong.append("it did not end")
        seconds = time.monotonic() - start
        if self.process.returncode not in (0, 130):  # 130: nothing had begun
            wrong.append(f"it ended with {self.process.returncode}: {self._output.read_text()}")
        if psutil.wait_procs(others, timeout=0.5)[1]:
            wrong.append("it left processes behind")
        if self.process.returncode == 0:
            try:
                wrong += checkpoint.load_newest(self.run_dir / "checkpoints")[1]
            except UserError as error:
                wrong.append(str(error))
        return seconds, wrong

    def end_well(self) -> None:
        """End the run by SIGTERM.

        Raises:
            RuntimeError: for what was wrong with its end.
        """
        wrong = self.terminate()[1]
        if wrong:
            raise RuntimeError("; ".join(wrong))
