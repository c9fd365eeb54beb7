"""Starts the trainers of `--trainers` as processes of this machine, and ends them together."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from common import launched
from common.errors import TrainerLost, UserError
from settings.config import Config
from settings.stored_run import kept_id
from settings.trust import names_code
from training.signals import heeded

_LOOKS_EVERY_S = 0.05
# what is left of the trainers has so long to end by itself once one has failed, or the first is done
_PATIENCE_S = 20.0
_KILLED_AFTER_S = 10.0  # the signal that asks for it
_SHORT_LIFE_S = 30.0
_SHORT_LIVES = 5  # of one trainer in a row, after which no other takes its place


def launch(config: Config) -> int:
    """Run `config.trainers` processes, of which each is a trainer of the run; the exit code.

    Trainers that take each step together all end with the first that fails. Of others one that is
    killed is replaced, but for the first one of a store: the others would train on for nobody.
    """
    if config.store is not None:
        from cluster.store.make import server  # its packages take a moment

        with server(config.store) as url:
            kept = None if config.resume is None else kept_id(Path(config.resume))
            run_id = kept or secrets.token_hex(4)
            start = secrets.token_hex(8)
            return _launch(
                config.trainers,
                lambda rank, _: _in_store(config, url, run_id, start, rank),
                {0},
            )
    with tempfile.TemporaryDirectory(prefix="trainers-") as folder:
        store = f"{folder}/store"
        if config.trainer_mode == "synchronous":
            everyone = set(range(config.trainers))
            return _launch(
                config.trainers,
                lambda rank, _: _Start(launched.variables(rank, config.trainers, store)), everyone,
            )  # fmt: skip
        memory = os.memfd_create("model")
        return _launch(
            config.trainers,
            lambda rank, restarts: _Start(
                launched.variables(rank, config.trainers, store, memory, restarts), (memory,)
            ),
        )


class _Start(NamedTuple):
    """How a trainer is started: with what in its environment, and by which command."""

    variables: dict[str, str]
    descriptors: tuple[int, ...] = ()
    command: tuple[str, ...] = tuple(sys.orig_argv[1:])


def _in_store(config: Config, url: str, run_id: str, start: str, rank: int) -> _Start:
    """How a trainer of a run in a store is started."""
    variables = launched.store_variables(rank, config.trainers, url, run_id, start)
    if rank == 0:
        return _Start(variables)
    command = (
        sys.argv[0], "--store", url, "--join", run_id, "--store_timeout", str(config.store_timeout),
    )  # fmt: skip
    trust = ("--trust",) if names_code(config) else ()  # the user has named it
    return _Start(variables, command=(*command, *trust))


def _launch(trainers: int, how: Callable[[int, int], _Start], needed: Collection[int] = ()) -> int:
    """Run so many trainers to their end; the exit code.

    Args:
        how: a trainer is started, given its rank and how often it was restarted.
        needed: ranks of trainers that the others cannot do without.
    """
    group = _Group(trainers, how, needed)
    asked: list[int] = []

    def forward(number: int, frame: Any) -> None:
        asked.append(number)
        group.send(number)

    for number in heeded():
        signal.signal(number, forward)
    try:
        for rank in range(trainers):
            group.start(rank)
        for number in asked:  # while some were not there yet
            group.send(number)
        if len(needed) < trainers:
            group.replace_killed(asked)
        asked_to_end = group.wait()
    finally:
        group.send(signal.SIGKILL)
    codes = [process.wait() for process in group.processes]
    if len(needed) < trainers:  # what became of the others has been said
        codes = codes[:1]
    told = any(code > 0 for code in codes)  # why the others were asked to end
    for rank, code in enumerate(codes):
        if code < 0 and not asked and not (told and rank in asked_to_end):
            print(f"train.py: trainer {rank} was killed by signal {-code}", file=sys.stderr)
    killed = 130 if asked else TrainerLost.exit_code  # asked before the run had begun
    # what one that was not killed says is the reason
    return next((code for code in codes if code > 0), killed if any(codes) else 0)


class _Group:
    """The processes of the trainers, in the order of their ranks."""

    def __init__(self, trainers: int, how: Callable[[int, int], _Start], needed: Collection[int]):
        self.processes: list[subprocess.Popen] = []
        self._trainers, self._how, self._needed = trainers, how, needed
        self._restarts = [0] * trainers
        self._short_lives = [0] * trainers
        self._started = [0.0] * trainers

    def start(self, rank: int) -> None:
        """Start a trainer; in the place of the one that was there, where there was one."""
        own, descriptors, command = self._how(rank, self._restarts[rank])
        process = subprocess.Popen(
            [sys.executable, *command], env=os.environ | own, pass_fds=descriptors
        )
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
        if code >= 0 or asked or rank in self._needed or self._short_lives[rank] >= _SHORT_LIVES:
            return False
        print(f"train.py: trainer {rank} was killed by signal {-code}: another takes its place",
              file=sys.stderr)  # fmt: skip
        self._restarts[rank] += 1
        self.start(rank)
        return True

    def wait(self) -> set[int]:
        """Wait for the end of all; those that hang on after another's end are asked to end.

        Returns:
            the ranks of those.
        """
        deadline, numbers, asked_to_end = None, [signal.SIGTERM, signal.SIGKILL], set()
        while None in (codes := [process.poll() for process in self.processes]):
            if deadline is None and (any(codes) or codes[0] is not None):
                # whoever refuses at once what the user gave begins nothing that others could finish
                lived = time.monotonic() - min(self._started)
                refused = UserError.exit_code in codes and lived < _SHORT_LIFE_S
                deadline = time.monotonic() + (_LOOKS_EVERY_S if refused else _PATIENCE_S)
            if deadline is not None and time.monotonic() > deadline and numbers:
                asked_to_end |= {rank for rank, code in enumerate(codes) if code is None}
                self.send(numbers.pop(0))
                deadline = time.monotonic() + _KILLED_AFTER_S
            time.sleep(_LOOKS_EVERY_S)
        return asked_to_end

    def send(self, number: int) -> None:
        """Send a signal to all that live."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
