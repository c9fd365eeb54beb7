"""Ends a sampler's process whose environment hangs, also where that holds Python's global lock."""

from __future__ import annotations

import contextlib
import faulthandler
import threading
from collections.abc import Callable, Iterator

_LOOKS_PER_PATIENCE = 10
_LONGEST_LOOK_S = 0.5


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """In this context the process ends after so long [s], with every thread's traceback and code 1."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class Watchdog:
    """While it watches, the process ends where no step is made for too long.

    A timer of faulthandler's, which needs no lock, prints every thread's traceback and ends the
    process with code 1. A thread puts it off for as long as steps are made.

    Args:
        progress: the fragment that was begun last, and the step in it; see `Sampler.progress`.
        patience: how long a step may take [s].
        first_patience: how long the first one may take, which may compile.
    """

    def __init__(
        self, progress: Callable[[], tuple[int, int]], patience: float, first_patience: float
    ):
        self._progress, self._patience, self._first_patience = progress, patience, first_patience
        self._lock = threading.Lock()
        self._known: tuple[int, int] | None = None  # None: it does not watch
        self._has_stepped = False
        self._look_s = min(_LONGEST_LOOK_S, patience / _LOOKS_PER_PATIENCE)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Steps are made in this context."""
        with self._lock:
            self._known = self._progress()
            self._arm()
        try:
            yield
            self._has_stepped = True
        finally:
            with self._lock:
                self._known = None
                faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        patience = self._patience if self._has_stepped else self._first_patience
        faulthandler.dump_traceback_later(patience, exit=True)

    def _serve(self) -> None:
        while not self._closed.wait(self._look_s):
            with self._lock:
                if self._known is not None and (now := self._progress()) != self._known:
                    self._known = now
                    self._has_stepped = self._has_stepped or now[1] > 0
                    self._arm()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
