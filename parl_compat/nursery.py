"""The launcher's side of `jobs`: starts a worker's jobs in milliseconds.

A job is the process of one actor.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence


class Nursery:
    """A process that has done an actor's imports, made at the first job; jobs are forks of it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, arguments: Sequence[str]) -> None:
        """Start a job with these arguments, which begin with its script. Returns at once."""
        line = json.dumps(list(arguments)).encode() + b"\n"
        try:
            self._send(line)
        except BrokenPipeError:  # it was killed: another one
            self.close()
            self._send(line)

    def _send(self, line: bytes) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "parl_compat.jobs"],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0,
            )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(line)

    def close(self) -> None:
        """End the nursery and its jobs."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None
