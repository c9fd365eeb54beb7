"""Whole messages over a socket, of which one that has come half makes nobody wait.

The bytes are those of `multiprocessing.connection.Connection`, which the other end uses: a message's
size as a signed 32-bit number, or -1 and a 64-bit one, then the message.
"""

from __future__ import annotations

import select
import socket
import struct
import time

_SHORT = 2**14  # bytes that may be copied
_SIZE, _LONG_SIZE = struct.Struct("!i"), struct.Struct("!Q")


class Framing:
    """One end of a connected socket.

    Args:
        connected: the socket. Taken over.
    """

    def __init__(self, connected: socket.socket):
        self._socket = connected
        self._expect(_SIZE.size)

    def _expect(self, size: int, header: struct.Struct | None = _SIZE) -> None:
        self._header, self._part, self._filled = header, bytearray(size), 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, timeout: float | None) -> bytes | None:
        """The next message; None where it has not come whole within `timeout` [s]. None: wait for ever.

        Raises:
            EOFError: where the other end is closed.
            OSError: where this one is.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if (message := self._take()) is not None:
                return message
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not _ready(self._socket, select.POLLIN, left):
                return None

    def _take(self) -> bytes | None:
        """What has come of a message, if that is all of it."""
        while True:
            with memoryview(self._part) as part:
                try:
                    received = self._socket.recv_into(part[self._filled :], 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return None
            if not received:
                raise EOFError
            self._filled += received
            if self._filled < len(self._part):
                continue
            whole, header = self._part, self._header
            self._expect(_SIZE.size)
            if header is None:
                return bytes(whole)
            (size,) = header.unpack(whole)
            if size == -1:
                self._expect(_LONG_SIZE.size, _LONG_SIZE)
            elif size == 0:
                return b""
            else:
                self._expect(size, None)

    def send(self, message: bytes, timeout: float) -> bool:
        """Send a message; whether the other end took it in time.

        Args:
            timeout: how long it may read nothing [s]. The connection is of no use afterwards.

        Raises:
            OSError: where an end is closed.
        """
        is_long = len(message) >= 2**31
        size = (
            _SIZE.pack(-1) + _LONG_SIZE.pack(len(message)) if is_long else _SIZE.pack(len(message))
        )
        # a short one in one piece, so that no exception of a signal comes within it
        parts = [size + message] if len(message) <= _SHORT else [size, message]
        for part in parts:
            rest = memoryview(part)
            while rest:
                try:
                    rest = rest[self._socket.send(rest, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    if not _ready(self._socket, select.POLLOUT, timeout):
                        return False
        return True

    def close(self) -> None:
        self._socket.close()


def _ready(connected: socket.socket, event: int, timeout: float | None) -> bool:
    waiting = select.poll()
    waiting.register(connected, event)
    return bool(waiting.poll(None if timeout is None else 1000.0 * timeout))
