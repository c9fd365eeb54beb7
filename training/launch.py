"""Starts the trainers of `--trainers` as processes of this machine, and ends them together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from common import launched
from common.errors import TrainerLost

_LOOKS_EVERY_S = 0.05
# what is left of the trainers has so long to end by itself once one has failed, or the first is done
_PATIENCE_S = 20.0
_KILLED_AFTER_S = 10.0  # the signal that asks for it


def launch(trainers: int) -> int:
    """Run this very command in so many processes, of which each is a trainer; the exit code."""
    with tempfile.TemporaryDirectory(prefix="trainers-") as folder:
        processes: list[subprocess.Popen] = []
        asked: list[int] = []

        def forward(number: int, frame: Any) -> None:
            asked.append(number)
            _send(processes, number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, forward)
        try:
            for rank in range(trainers):
                environment = os.environ | launched.variables(rank, trainers, f"{folder}/store")
                command = [sys.executable, *sys.orig_argv[1:]]
                processes.append(subprocess.Popen(command, env=environment))
            for number in asked:  # while some were not there yet
                _send(processes, number)
            _wait(processes)
        finally:
            _send(processes, signal.SIGKILL)
    codes = [process.wait() for process in processes]
    for rank, code in enumerate(codes):
        if code < 0 and not asked:
            print(f"train.py: trainer {rank} was killed by signal {-code}", file=sys.stderr)
    killed = 130 if asked else TrainerLost.exit_code  # asked before the run had begun
    return next((killed if code < 0 else code for code in codes if code != 0), 0)


def _wait(processes: Sequence[subprocess.Popen]) -> None:
    """Wait for the end of all; those that hang on after another's end are asked to end."""
    deadline, numbers = None, [signal.SIGTERM, signal.SIGKILL]
    while None in (codes := [process.poll() for process in processes]):
        if deadline is None and (any(codes) or codes[0] is not None):
            deadline = time.monotonic() + _PATIENCE_S
        if deadline is not None and time.monotonic() > deadline and numbers:
            _send(processes, numbers.pop(0))
            deadline = time.monotonic() + _KILLED_AFTER_S
        time.sleep(_LOOKS_EVERY_S)


def _send(processes: Sequence[subprocess.Popen], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
