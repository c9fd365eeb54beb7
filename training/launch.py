"""Starts the trainers of `--trainers` as processes of this machine, and ends them together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from common import launched
from common.errors import TrainerLost

_LOOKS_EVERY_S = 0.05
# what is left of the trainers has so long to end by itself once one has failed, or the first is done
_PATIENCE_S = 20.0
_KILLED_AFTER_S = 10.0  # the signal that asks for it
_SHORT_LIFE_S = 30.0
_SHORT_LIVES = 5  # of one trainer in a row, after which no other takes its place


def launch(trainers: int, hogwild: bool = False) -> int:
    """Run this very command in so many processes, of which each is a trainer; the exit code.

    Args:
        hogwild: the trainers have a model in common memory, and one that is killed is replaced.
            Otherwise all end with the first that fails.
    """
    with tempfile.TemporaryDirectory(prefix="trainers-") as folder:
        memory = os.memfd_create("model") if hogwild else None
        group = _Group(trainers, f"{folder}/store", memory)
        asked: list[int] = []

        def forward(number: int, frame: Any) -> None:
            asked.append(number)
            group.send(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, forward)
        try:
            for rank in range(trainers):
                group.start(rank)
            for number in asked:  # while some were not there yet
                group.send(number)
            if hogwild:
                group.replace_killed(asked)
            group.wait()
        finally:
            group.send(signal.SIGKILL)
    codes = [process.wait() for process in group.processes]
    if hogwild:  # what became of the others has been said
        codes = codes[:1]
    for rank, code in enumerate(codes):
        if code < 0 and not asked:
            print(f"train.py: trainer {rank} was killed by signal {-code}", file=sys.stderr)
    killed = 130 if asked else TrainerLost.exit_code  # asked before the run had begun
    return next((killed if code < 0 else code for code in codes if code != 0), 0)


class _Group:
    """The processes of the trainers, in the order of their ranks."""

    def __init__(self, trainers: int, store: str, memory: int | None):
        self.processes: list[subprocess.Popen] = []
        self._trainers, self._store, self._memory = trainers, store, memory
        self._restarts = [0] * trainers
        self._short_lives = [0] * trainers
        self._started = [0.0] * trainers

    def start(self, rank: int) -> None:
        """Start a trainer; in the place of the one that was there, where there was one."""
        own = launched.variables(
            rank, self._trainers, self._store, self._memory, self._restarts[rank]
        )
        passed = () if self._memory is None else (self._memory,)
        command = [sys.executable, *sys.orig_argv[1:]]
        process = subprocess.Popen(command, env=os.environ | own, pass_fds=passed)
        self.processes[rank : rank + 1] = [process]
        self._started[rank] = time.monotonic()

    def replace_killed(self, asked: list[int]) -> None:
        """Look after trainers that do not need one another, until the first one has ended.

        Args:
            asked: signals that have asked for the end.
        """
        given_up: set[int] = set()
        while self.processes[0].poll() is None or self._is_replaced(0, asked):
            for rank in set(range(1, self._trainers)) - given_up:
                code = self.processes[rank].poll()
                if code is None or self._is_replaced(rank, asked):
                    continue
                given_up.add(rank)
                if code != 0 and not asked:
                    print(f"train.py: trainer {rank} has failed, the others go on", file=sys.stderr)
            time.sleep(_LOOKS_EVERY_S)

    def _is_replaced(self, rank: int, asked: list[int]) -> bool:
        """Replace a trainer that has ended, where it was killed; whether it was replaced."""
        code, lived = self.processes[rank].poll(), time.monotonic() - self._started[rank]
        assert code is not None
        self._short_lives[rank] = self._short_lives[rank] + 1 if lived < _SHORT_LIFE_S else 0
        if code >= 0 or asked or self._short_lives[rank] > _SHORT_LIVES:
            return False
        print(f"train.py: trainer {rank} was killed by signal {-code}: another takes its place",
              file=sys.stderr)  # fmt: skip
        self._restarts[rank] += 1
        self.start(rank)
        return True

    def wait(self) -> None:
        """Wait for the end of all; those that hang on after another's end are asked to end."""
        deadline, numbers = None, [signal.SIGTERM, signal.SIGKILL]
        while None in (codes := [process.poll() for process in self.processes]):
            if deadline is None and (any(codes) or codes[0] is not None):
                deadline = time.monotonic() + _PATIENCE_S
            if deadline is not None and time.monotonic() > deadline and numbers:
                self.send(numbers.pop(0))
                deadline = time.monotonic() + _KILLED_AFTER_S
            time.sleep(_LOOKS_EVERY_S)

    def send(self, number: int) -> None:
        """Send a signal to all that live."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
