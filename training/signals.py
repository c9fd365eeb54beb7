"""SIGTERM and SIGINT: how a run is asked to end, and how soon it does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

STOPS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal asked the run to end. No environment's code takes it for an Exception."""

    def __init__(self, number: int):
        super().__init__(number)
        self.reason = signal.Signals(number).name.lower()


class StopSignals:
    """Handlers that end a run at once while it waits, and otherwise at its next wait.

    The next wait may be too far away (the first update may compile for 20 s): after `grace`
    seconds `abort` is called.

    Args:
        abort: ends the process, given the reason; it must not return.
        grace: how long after the signal [s].
    """

    GRACE_S = 4.0

    def __init__(self, abort: Callable[[str], NoReturn], grace: float = GRACE_S) -> None:
        self._asked: int | None = None
        self._waiting = self._ignored = False
        self._abort, self._grace = abort, grace
        for number in STOPS:
            signal.signal(number, self._handle)
        signal.signal(signal.SIGALRM, self._too_late)

    @property
    def asked(self) -> str | None:
        """The signal that has asked for the end, sigterm or sigint; None where none has."""
        return None if self._asked is None else Stopped(self._asked).reason

    def _handle(self, number: int, frame: Any) -> None:
        if self._ignored:
            return
        self._asked = number
        if self._waiting:
            raise Stopped(number)
        signal.setitimer(signal.ITIMER_REAL, self._grace)

    def _too_late(self, number: int, frame: Any) -> None:
        if self._ignored:
            return
        assert self._asked is not None
        self._abort(Stopped(self._asked).reason)

    def ignore(self) -> None:
        """The run ends already, by itself or for a signal: from now on none disturbs that."""
        self._ignored = True
        signal.setitimer(signal.ITIMER_REAL, 0)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Wait in this context: a signal, also one that came before, raises `Stopped`."""
        self._waiting = True
        try:
            if self._asked is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise Stopped(self._asked)
            yield
        finally:
            self._waiting = False
