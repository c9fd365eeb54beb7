"""Whether a cluster's master, or head, is there. Without one no new actor can start."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.pool import MasterLost

LOOK_S = 2.0
_CONNECT_TIMEOUT_S = 3.0


def reach(host: str, port: int) -> None:
    """Connect to an address, and leave.

    Raises:
        OSError: where nothing listens there.
    """
    socket.create_connection((host, port), _CONNECT_TIMEOUT_S).close()


class MasterWatch:
    """Looks every two seconds, in a thread, whether the master is there.

    Args:
        what: it is, such as "xparl master".
        where: it is.
        look: raises OSError where it is away.
        patience: how long it may be away [s].
        resume: the command that goes on with the run.

    Attributes:
        losses: how often it was found to be away.
    """

    def __init__(
        self, what: str, where: str, look: Callable[[], None], patience: float, resume: str
    ):
        self._what, self._where, self._look = what, where, look
        self._patience, self._resume = patience, resume
        self.losses = 0
        self._since: float | None = None  # when it was first found to be away
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def news(self) -> list[str]:
        """What the user has not been told yet.

        Raises:
            MasterLost: where the master has been away for longer than it may.
        """
        since, sentences = self._since, []
        with suppress(queue.Empty):
            while True:
                sentences.append(self._news.get_nowait())
        if since is not None and time.monotonic() - since > self._patience:
            raise MasterLost(
                f"the {self._what} at {self._where} has been away for {self._patience:g} s"
                f" (master_timeout): once it is there again, go on with `{self._resume}`"
            )
        return sentences

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            try:
                self._look()
            except OSError as error:
                if self._since is None:
                    self._since, self.losses = time.monotonic(), self.losses + 1
                    self._news.put(
                        f"the {self._what} at {self._where} is away ({error.strerror or error}):"
                        f" samplers that live go on, and it is waited for for {self._patience:g} s"
                    )
            else:
                if self._since is not None:
                    seconds, self._since = time.monotonic() - self._since, None
                    self._news.put(f"the {self._what} is back after {seconds:.1f} s")
