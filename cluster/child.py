"""A process of our own, such as a local sampler: started, talked to in messages, ended.

The child runs `serve()` of a module. It shares one connection with its parent, over which whole
messages (bytes) travel in both directions, and ends as soon as that connection is closed. Thus no
child outlives its parent, however the parent ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from multiprocessing.connection import Connection

from cluster.framing import Framing
from cluster.nursery import NURSERY

CLOSE_TIMEOUT_S = 2.0
SEND_TIMEOUT_S = 180.0  # in which a child reads something: it may be importing
_LOOKS_EVERY_S = 0.005
PROGRESS_S = 0.5


class ChildEnded(Exception):
    """The child has ended, so it neither takes nor gives a message. Says what became of it."""


class Child:
    """The parent's side of one process.

    Args:
        module: the module whose `serve()` the process runs.
        descriptors: open files that the process inherits, such as shared memory.
        niceness: added to the process's niceness before it imports anything.
    """

    def __init__(self, module: str, descriptors: Sequence[int] = (), niceness: int = 0):
        ours, theirs = socket.socketpair()
        try:
            self._ticket = NURSERY.fork(module, [theirs.fileno(), *descriptors], niceness)
        finally:
            theirs.close()
        self._connection = Framing(ours)
        self._come: bytes | None = None  # a message that `receive` has not taken yet

    @cached_property
    def pid(self) -> int | None:
        """Its process id; None where it could not be started."""
        return NURSERY.pid(self._ticket)

    def fileno(self) -> int:
        """The connection's descriptor: readable where something has come or the child has ended."""
        return self._connection.fileno()

    def send(self, message: bytes) -> None:
        """Send one message. Waits only where the child has not read earlier ones, or a long one.

        Raises:
            ChildEnded: where nobody reads it; a child that hangs is ended.
        """
        try:
            if self._connection.send(message, SEND_TIMEOUT_S):
                return
        except OSError:
            raise self._ended() from None
        self._kill()
        raise ChildEnded(f"process {self.pid} has read nothing for {SEND_TIMEOUT_S:g} s")

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether `receive` has an answer (or the child's end) to give within `timeout` [s].

        A part of a message is none: the child may be stopped before it sends the rest.
        """
        try:
            if self._come is None:
                self._come = self._connection.receive(timeout)
        except (EOFError, OSError):  # OSError: it was reset, or this end is closed
            return True
        return self._come is not None

    def receive(self, timeout: float | None = None) -> bytes:
        """Wait for one message.

        Args:
            timeout: how long to wait [s]; None: for ever.

        Raises:
            ChildEnded: where none will come.
            TimeoutError: where none came in time.
        """
        if not self.poll(timeout):
            raise TimeoutError(f"process {self.pid} has not answered within {timeout} s")
        message, self._come = self._come, None
        if message is None:
            raise self._ended()
        return message

    def what_became_of_it(self) -> str | None:
        """How the process ended, such as "was killed by signal 9"; None while it runs."""
        if self.pid is None:
            return "could not be started"
        code = NURSERY.exit_code(self.pid)
        if code is None:
            return None
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"

    def _wait(self, timeout: float) -> str | None:
        """How the process ended, or None where it still runs after `timeout` [s]."""
        deadline = time.monotonic() + timeout
        while (became := self.what_became_of_it()) is None and time.monotonic() < deadline:
            time.sleep(_LOOKS_EVERY_S)
        return became

    def _ended(self) -> ChildEnded:
        """The error for a connection that the child has closed: it ends at that moment."""
        became = self._wait(CLOSE_TIMEOUT_S) or "closed its connection, but has not ended"
        return ChildEnded(f"process {self.pid} {became}")

    def kill(self) -> None:
        """End the process at once, with those that it has started, and the connection."""
        self._kill()
        self._connection.close()

    def _kill(self) -> None:
        if self.pid is not None and self.what_became_of_it() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._wait(CLOSE_TIMEOUT_S)

    def close(self) -> None:
        """Let the process end by itself; kill it where that takes long."""
        close_all([self])


def close_all(children: Iterable[Child], timeout: float = CLOSE_TIMEOUT_S) -> None:
    """Close all connections, then give the children `timeout` [s], in all, to end by themselves."""
    children = list(children)
    for child in children:
        child._connection.close()
    deadline = time.monotonic() + timeout
    for child in children:
        child._wait(max(0.0, deadline - time.monotonic()))
        child.kill()


def parent() -> tuple[Connection, list[int]]:
    """In a child: the connection to its parent, and the descriptors that it was started with."""
    first, *others = (int(argument) for argument in sys.argv[1:])
    return Connection(first), others


def end_with_parent(connection: Connection, patience: float = CLOSE_TIMEOUT_S) -> None:
    """In a child: end it where its parent has ended or closed the connection, whatever it is doing.

    With it ends what it has started. A thread looks; code that never gives Python's lock free stops it.

    Args:
        patience: how long the child may go on, to end by itself [s].
    """

    def watch() -> None:
        closed = select.poll()
        closed.register(connection.fileno(), 0)  # for the other end's being closed alone
        closed.poll()
        time.sleep(patience)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def answer_all(
    connection: Connection,
    handle: Callable[[bytes], bytes],
    progress: Callable[[], object],
    says: bytes,
) -> None:
    """In a child: answer every message until the parent closes the connection, or ends.

    Args:
        handle: makes the answer.
        progress: its result changes while `handle` gets on.
        says: the message that tells so, sent every `PROGRESS_S` seconds.
    """
    writing = threading.Lock()

    def tell() -> None:
        known = progress()
        with contextlib.suppress(ConnectionError):
            while True:
                time.sleep(PROGRESS_S)
                now = progress()
                if now != known:
                    known = now
                    with writing:
                        connection.send_bytes(says)

    threading.Thread(target=tell, daemon=True).start()
    end_with_parent(connection)  # `handle` may never return
    with contextlib.suppress(EOFError, OSError):  # OSError: the parent ended within a message
        while True:
            answer = handle(connection.recv_bytes())
            with writing:
                connection.send_bytes(answer)
