"""The address of a sample store, and where its password is: never in the settings.

`redis://[USER[:PASSWORD]@]HOST:PORT/DB`. A password in it is taken out as soon as the settings are made,
and put into the environment variable `DPPO_REDIS_PASSWORD`, which child processes inherit. So it is in
no file, no message and no list of processes that this project writes.
"""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

EMBEDDED = "embedded"
PASSWORD = "DPPO_REDIS_PASSWORD"
RUN_ID_CHARACTERS = "A-Za-z0-9_.-"
RUN_ID = f"[{RUN_ID_CHARACTERS}]{{1,64}}"  # it stands in every key of the run
FORM = (
    "redis://[USER[:PASSWORD]@]HOST:PORT/DB (rediss:// with TLS), such as redis://10.0.0.1:6379/0"
)


class StoreAddress(NamedTuple):
    """Where a store is. `user` is "" where the URL names none."""

    tls: bool
    user: str
    host: str
    port: int
    db: int


def without_password(url: str) -> str:
    """The URL without its password, which goes to `DPPO_REDIS_PASSWORD`. Others are left as they are."""
    scheme, separator, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    user, colon, password = credentials.partition(":")
    if not colon:
        return url
    os.environ[PASSWORD] = unquote(password)
    return f"{scheme}{separator}{user}{at if user else ''}{place}"


def hide_passwords(words: list[str]) -> None:
    """Take the password out of the URL of a store in a command line, in place."""
    words[:] = [without_password(w) if "redis://" in w or "rediss://" in w else w for w in words]


def parse(url: str) -> StoreAddress:
    """Read the URL of a store, from which the password has been taken.

    Raises:
        ValueError: with the rule that it breaks. The message has no part of the URL.
    """
    try:
        parts = urlsplit(url)
        port, db = parts.port, parts.path.removeprefix("/")
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.password:
            raise ValueError
        if port == 0 or not (db or "0").isdecimal() or parts.query or parts.fragment:
            raise ValueError
        parts.hostname.encode("idna")  # a name such as a..b cannot be looked up
    except ValueError:
        raise ValueError(f"{EMBEDDED}, or {FORM}") from None
    user = unquote(parts.username or "")
    return StoreAddress(parts.scheme == "rediss", user, parts.hostname, port or 6379, int(db or 0))
