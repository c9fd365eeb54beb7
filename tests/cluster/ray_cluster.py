"""A real Ray cluster on this machine, whose nodes can be killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from pathlib import Path

import psutil

from common.ports import free_port
from tests.conftest import BIN, ROOT


class RayCluster:
    """Nodes that ask for a token, and whose actors find their FAULTS_FOLDER in `faults`.

    Args:
        home: an empty folder in /tmp itself: a socket's path may have 107 characters.

    Attributes:
        address: of the head node, now and whenever it is started again.
        variables: of the environment, for whoever is to talk to it.
    """

    def __init__(self, home: Path):
        self._home, self.faults = home, home / "faults"
        self.faults.mkdir()
        (home / "token").write_text(secrets.token_hex(32))
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(home / "token"),
            "FAULTS_FOLDER": str(self.faults),
        }

    def start_head(self, cpus: int) -> None:
        self._start(cpus, "--head", "--port", str(self._port), "--include-dashboard", "false",
                    "--temp-dir", str(self._home))  # fmt: skip

    def start_node(self, cpus: int) -> psutil.Process:
        """Start another node; its raylet, with which it ends."""
        before = self._raylets()
        self._start(cpus, "--address", self.address)
        return next(raylet for raylet in self._raylets() if raylet not in before)

    def _start(self, cpus: int, *options: str) -> None:
        subprocess.run(
            [str(BIN / "python"), "-m", "ray.scripts.scripts", "start", *options, "--num-cpus",
             str(cpus), "--object-store-memory", "100000000", "--disable-usage-stats"],
            check=True, timeout=90, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env=os.environ | self.variables | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "5"},
        )  # fmt: skip

    def _raylets(self) -> list[psutil.Process]:
        return [process for process in self._named() if process.info["name"] == "raylet"]

    def _named(self) -> list[psutil.Process]:
        """The processes that Ray has started for the head's address, or in its folder."""
        found = []
        for process in psutil.process_iter(["name", "cmdline"]):
            command = " ".join(process.info["cmdline"] or [])
            of_ray = process.info["name"] in ("raylet", "gcs_server") or "/ray/" in command
            of_ray = of_ray or "-m ray." in command
            if of_ray and (f":{self._port}" in command or str(self._home) in command):
                found.append(process)
        return found

    def actors(self) -> list[psutil.Process]:
        """The processes of the cluster's actors."""
        found = []
        for raylet in self._raylets():
            children = []
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                children = raylet.children()
            for process in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "Actor" in "".join(process.cmdline()[:1]):
                        found.append(process)
        return found

    def kill(self, name: str = "") -> None:
        """End the head node and all others at once, or the processes of this name alone."""
        named = [process for process in self._named() if name in process.info["name"]]
        started = []
        for process in named:
            with contextlib.suppress(psutil.NoSuchProcess):
                started += process.children(recursive=True)
        for process in [*named, *started]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
