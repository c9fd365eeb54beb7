"""The way to a store's server: its client, and the patience with which it is waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as TooLate
from redis.retry import Retry

from cluster.pool import SamplerError
from settings.store_url import PASSWORD, parse

Result = TypeVar("Result")

SOCKET_TIMEOUT_S = 2.0  # without a byte; whatever was asked is then asked again
_TRIES_EVERY_S = 0.2
_AWAY = (NotConnected, TooLate, BusyLoadingError, OutOfMemoryError, ReadOnlyError)
_NO_DISK, _NO_DATABASE = "MISCONF", "DB index"  # how the texts of other errors begin


class StoreError(SamplerError):
    """The store cannot be used. The message names the remedy."""


class StoreLost(SamplerError):
    """The store has been away for too long."""

    exit_code = 75  # sysexits.h: a temporary failure, try again later


def client_of(url: str) -> redis.Redis:
    """A client of the server at a URL without a password, which `DPPO_REDIS_PASSWORD` has.

    It connects when it is first used, and tries nothing again by itself.
    """
    tls, user, host, port, db = parse(url)
    return redis.Redis(
        host, port, db, os.environ.get(PASSWORD) or None,
        username=user or None, ssl=tls, protocol=2, retry=Retry(NoBackoff(), 0),
        socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=SOCKET_TIMEOUT_S,
    )  # fmt: skip


class Link:
    """Does things at a store's server, and does them again where it is away.

    Args:
        url: of the server.
        timeout: how long it may be away [s].
        say: prints a sentence for the user.

    Attributes:
        client: for calls that are not to be repeated.
        outages: how often the server was away.
    """

    def __init__(self, url: str, timeout: float, say: Callable[[str], None]):
        self.url, self.client = url, client_of(url)
        self.outages = 0
        self._timeout, self._say = timeout, say

    def call(self, action: Callable[[redis.Redis], Result]) -> Result:
        """The result of an action, which must be one that can be done again without harm.

        Raises:
            StoreLost: where the server was away for longer than the timeout.
            StoreError: where it refuses to answer.
        """
        since: float | None = None
        while True:
            try:
                result = action(self.client)
            except (AuthenticationError, NoPermissionError) as error:
                raise StoreError(
                    f"the store at {self.url} refuses this user: {error}. Give the right password in"
                    f" {PASSWORD}, and the user in the URL"
                ) from None
            except RedisError as error:
                text = _in_a_line(error)
                if text.startswith(_NO_DATABASE):
                    raise StoreError(
                        f"the store at {self.url} has no such database ({text}): give one that it has,"
                        f" such as /0"
                    ) from None
                if not isinstance(error, _AWAY) and not text.startswith(_NO_DISK):
                    raise StoreError(
                        f"the store at {self.url} answers with an error: {text}: give a server that is"
                        f" Redis 5 or newer, or compatible with it"
                    ) from None
                now = time.monotonic()
                if since is None:
                    since = now
                    self.outages += 1
                    self._say(f"the store at {self.url} is away ({text}): waiting")
                if now - since > self._timeout:
                    raise StoreLost(
                        f"the store at {self.url} has been away for {self._timeout:g} s"
                        f" ({text}): start it again, or give a longer --store_timeout"
                    ) from None
                time.sleep(_TRIES_EVERY_S)
            else:
                if since is not None:
                    away = time.monotonic() - since
                    self._say(f"the store at {self.url} is back after {away:.1f} s")
                return result

    def close(self) -> None:
        self.client.close()


def _in_a_line(error: Exception) -> str:
    """The first line of an error, without its last full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
