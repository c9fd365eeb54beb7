"""Whole messages between the learner and its remote actors, over one ZMQ socket of the learner's.

    actor                                                learner
    "": it is there                                 ->
                                                    <-   the messages of `cluster.session`
    its answers, and `PROGRESS` now and then        ->
                                                    <-   "", twice a second: is it there still?

Messages are plain bytes, and nothing in them is ever unpickled. Only holders of the cluster's key are
heard. An actor is known by a token which the learner has made up for it; what comes from others is
dropped.

The end of a process closes its connection at once. The kernels of two machines notice it where a
machine or the network between them is gone; they do not mind a process that is stopped or busy.
The learner gives such an actor up soon, and gets another where a CPU is free. The actor waits
longer, because it would also lose a learner that is stopped and reads nothing.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import zmq
import zmq.utils.monitor

from parl_compat import keys

NOTHING = b""
PROGRESS_S = 0.5
# how long what was sent may stay unacknowledged by the kernel of the other side
CUT_OFF_S = 8  # for the learner, which asks twice a second whether an actor is there
LEARNER_CUT_OFF_S = 30  # for an actor
_END_S = 5.0  # for an actor that hangs, once the learner is gone
_ENDED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED  # it could not be made in the first place
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def configure(socket: zmq.Socket, patience: int) -> None:
    """What both sides' sockets have in common, before they bind or connect: the cluster's key too.

    Args:
        patience: a connection that is cut off for longer is lost [s].
    """
    keys.secure(socket)
    socket.linger = 0
    socket.sndhwm = 0  # the talk itself bounds what is under way
    socket.connect_timeout = patience * 1000
    socket.tcp_maxrt = patience * 1000
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = socket.tcp_keepalive_intvl = max(1, patience // 6)
    socket.tcp_keepalive_cnt = 5


class Waker:
    """Lets a thread that polls go on. Any thread may call `wake`, also after `close`."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._is_closed = False

    def wake(self) -> None:
        with self._lock:
            if not self._is_closed:
                os.eventfd_write(self.descriptor, 1)

    def clear(self) -> bool:
        """Whether `wake` was called since the last time."""
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self.descriptor) > 0
        return False

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            os.close(self.descriptor)


class Exchange:
    """The learner's side. One thread at a time may use it; any may call `wake`.

    Args:
        host: the address at which it listens, at a port that it chooses.

    Attributes:
        endpoint: where actors connect to.
    """

    def __init__(self, host: str):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        configure(self._socket, CUT_OFF_S)
        self._socket.router_mandatory = True  # sending to one who is gone is an error
        port = self._socket.bind_to_random_port(f"tcp://{host}")
        self.endpoint = f"tcp://{host}:{port}"
        self._waker = Waker()
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._waker.descriptor, zmq.POLLIN)

    def send(self, token: bytes, message: bytes = NOTHING) -> bool:
        """Send an actor a message, and return at once. False where it is not connected."""
        try:
            self._socket.send_multipart([token, message], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            return False
        return True

    def receive(self, timeout: float) -> tuple[list[tuple[bytes, memoryview]], bool]:
        """The messages that have come, with their actors' tokens, and whether `wake` was called.

        Args:
            timeout: how long to wait for either [s].
        """
        self._poller.poll(math.ceil(timeout * 1000))
        messages = []
        with contextlib.suppress(zmq.Again):
            while True:
                token, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
                if len(frames) == 1:
                    messages.append((token.bytes, frames[0].buffer))
        return messages, self._waker.clear()

    def wake(self) -> None:
        self._waker.wake()

    def close(self) -> None:
        """Disconnect all actors."""
        self._socket.close()
        self._context.term()
        self._waker.close()


def answer_all(
    endpoint: str,
    token: bytes,
    handle: Callable[[memoryview], bytes],
    progress: Callable[[], object],
    says: bytes,
) -> NoReturn:
    """In an actor: answer every message until the learner is gone.

    Messages are answered here; another thread carries them, and tells of progress meanwhile.

    Args:
        handle: makes the answer.
        progress: its result changes while `handle` gets on.
        says: the message that tells so.

    Raises:
        ConnectionError: when the learner is gone.
    """
    messages: queue.SimpleQueue[zmq.Frame | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    waker = Waker()
    carrier = threading.Thread(
        target=_carry, args=(endpoint, token, messages, answers, waker, progress, says), daemon=True
    )
    carrier.start()
    while (message := messages.get()) is not None:
        answers.put(handle(message.buffer))
        waker.wake()
    raise ConnectionError(f"the learner at {endpoint} is gone")


def _carry(
    endpoint: str,
    token: bytes,
    messages: queue.SimpleQueue[zmq.Frame | None],
    answers: queue.SimpleQueue[bytes],
    waker: Waker,
    progress: Callable[[], object],
    says: bytes,
) -> None:
    """Carry messages between the learner and the two queues until the connection ends.

    Then the process ends too, also where it hangs: nobody else could free its CPU.
    """
    socket = zmq.Context.instance().socket(zmq.DEALER)
    configure(socket, LEARNER_CUT_OFF_S)
    socket.routing_id = token
    socket.reconnect_ivl = -1  # the learner puts another actor in this one's place
    monitor = socket.get_monitor_socket(_ENDED)
    poller = zmq.Poller()
    for source in (socket, monitor, waker.descriptor):
        poller.register(source, zmq.POLLIN)
    try:
        socket.connect(endpoint)
        socket.send(NOTHING)
        known, told = progress(), time.monotonic()
        while True:
            events = dict(poller.poll(int(PROGRESS_S * 1000)))
            if monitor in events:
                return
            if socket in events:
                frame = socket.recv(copy=False)
                if len(frame):
                    messages.put(frame)
            waker.clear()
            with contextlib.suppress(queue.Empty):
                while True:
                    socket.send(answers.get_nowait(), copy=False)
            now = time.monotonic()
            if now - told >= PROGRESS_S:
                told, before, known = now, known, progress()
                if known != before and before is not None:
                    socket.send(says)
    finally:
        messages.put(None)
        time.sleep(_END_S)
        os._exit(1)
