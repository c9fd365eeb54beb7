"""SIGTERM, SIGINT and SIGHUP: how a run is asked to end, and how soon it does."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_EARLY_S = 0.01  # by which the timer's clock may be ahead


class Stopped(BaseException):
    """A signal asked the run to end. No environment's code takes it for an Exception."""

    def __init__(self, number: int):
        super().__init__(number)
        self.reason = signal.Signals(number).name.lower()


SIGNALS = {Stopped(number).reason: number for number in STOPS}


def heeded() -> list[int]:
    """The signals that end this process: all of `STOPS`, but no SIGHUP under `nohup`, which ignores it."""
    return [n for n in STOPS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


class StopSignals:
    """Handlers that end a run at once while it waits, and otherwise at its next wait.

    The next wait may be too far away (the first update may compile for 20 s): after `grace`
    seconds `abort` is called. A signal frees prints that nobody reads.

    Args:
        abort: ends the process, given the reason; it must not return.
        grace: how long after the signal [s].
    """

    GRACE_S = 4.0

    def __init__(self, abort: Callable[[str], NoReturn], grace: float = GRACE_S) -> None:
        self._asked: int | None = None
        self._waiting = self._ignored = False
        self._due: float | None = None  # when `abort` is called
        self._abort, self._grace = abort, grace
        for number in heeded():
            signal.signal(number, self._handle)
        signal.signal(signal.SIGALRM, self._too_late)

    @property
    def asked(self) -> str | None:
        """The signal that has asked for the end, sigterm, sigint or sighup; None where none has."""
        return None if self._asked is None else Stopped(self._asked).reason

    def _handle(self, number: int, frame: Any) -> None:
        leave_blocked_output()
        if self._ignored:
            return
        self._asked = number
        if self._waiting:
            raise Stopped(number)
        self._due = time.monotonic() + self._grace
        signal.setitimer(signal.ITIMER_REAL, self._grace)

    def _too_late(self, number: int, frame: Any) -> None:
        # another thread may have got the signal for its print alone
        if self._due is None or time.monotonic() < self._due - _EARLY_S:
            return
        assert self._asked is not None
        leave_blocked_output()
        self._abort(Stopped(self._asked).reason)

    def ignore(self) -> None:
        """The run ends already, by itself or for a signal: from now on none disturbs that."""
        self._ignored = True
        self._forget_due()
        if self._asked is not None:
            leave_blocked_output()

    def _forget_due(self) -> None:
        self._due = None
        signal.setitimer(signal.ITIMER_REAL, 0)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Wait in this context: a signal, also one that came before, raises `Stopped`."""
        self._waiting = True
        try:
            if self._asked is not None:
                self._forget_due()
                raise Stopped(self._asked)
            yield
        finally:
            self._waiting = False


def leave_blocked_output() -> None:
    """Where nobody takes what is printed, such as a terminal after Ctrl-S, let it go to nowhere.

    A print that waits, in whatever thread, goes on then: Python tries an interrupted write again.
    """
    output = select.poll()
    for descriptor in (1, 2):
        output.register(descriptor, select.POLLOUT)
    # one that is closed, or whose reader is gone, is reported too: nothing waits for it
    blocked = {1, 2} - {descriptor for descriptor, _ in output.poll(0)}
    if not blocked:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in blocked:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    for thread in threading.enumerate():
        with contextlib.suppress(OSError):  # it has just ended
            if thread is not threading.main_thread() and thread.ident is not None:
                signal.pthread_kill(thread.ident, signal.SIGALRM)
