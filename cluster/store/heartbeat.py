"""Tells the store every two seconds that a trainer or a sampler is alive, whatever else it does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from cluster.pool import SamplerError
from cluster.store.address import Link
from cluster.store.keys import RunGone
from cluster.store.run import Beat, RunStore

_EVERY_S = 2.0


class Heartbeat:
    """A thread with a connection of its own.

    It never waits for a store that is away: whoever it beats for notices that too, and says so.

    Args:
        url: of the store.
        run: the id of the run.
        kind: trainer or sampler.
        name: of the one who is alive.
        tells: the version that a trainer works from, and the share of its time that it has waited.

    Attributes:
        last: what the last heartbeat has brought back; None before the first.
        samplers: the largest number of a sampler that one has brought, and 1.
    """

    def __init__(
        self,
        url: str,
        run: str,
        kind: str,
        name: str | int,
        tells: Callable[[], tuple[int, float]] = lambda: (0, 0.0),
    ):
        self.last: Beat | None = None
        self.samplers = 0
        self._store = RunStore(Link(url, 0.0, lambda _: None), run)
        self._kind, self._name, self._tells = kind, name, tells
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            # whoever it beats for meets an error too, at the next step
            with contextlib.suppress(SamplerError, RunGone):
                self.last = self._store.beat(self._kind, self._name, *self._tells())
                self.samplers = max(self.samplers, self.last.samplers)
            if self._closed.wait(_EVERY_S):
                break
        # where the store is away, or without the run, there is nothing to leave
        with contextlib.suppress(SamplerError, RunGone):
            self._store.leave(self._kind, self._name)
        self._store.close()

    def close(self) -> None:
        """Be dead at once: another trainer takes over what this one has."""
        self._closed.set()
        self._thread.join()
