"""Ports of this machine."""

from __future__ import annotations

import errno
import random
import socket


def free_port(host: str = "127.0.0.1") -> int:
    """A free port that nobody is likely to take meanwhile.

    It is above those of Ray's workers (19,999), and below those that Linux gives to connections (32,768).
    """
    while True:
        with socket.socket() as probe:
            try:
                probe.bind((host, random.SystemRandom().randrange(20_000, 32_000)))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return probe.getsockname()[1]
