"""Starts a worker's jobs in milliseconds: forks of a process that has done an actor's imports.

A job is the process of one actor, and an actor begins with some seconds of imports. The nursery does
them once on each machine, and shares their memory with all of its jobs. It runs one thread and holds
no connection but its own, so a copy of it is whole.

    launcher (of PARL's worker)           nursery: `python -m parl_compat.nursery`
    a line: the job's arguments     ->    forks a job
    the pipe's end                  ->    kills its jobs, and ends
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from setproctitle import getproctitle, setproctitle

# Whatever of these a machine has: an actor's other modules are the learner's, and come with it.
PACKAGES = ("numpy", "scipy", "torch", "numba", "gymnasium", "mujoco")
_LOOK_S = 1.0  # how often it looks which jobs have ended


class Nursery:
    """The launcher's side."""

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
                [sys.executable, "-W", "ignore", "-m", "parl_compat.nursery"],
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


def serve() -> None:
    """Run the nursery: fork jobs for as long as the launcher lives."""
    getproctitle()  # it finds where the title stands only while `os.environ` is as it was
    from parl_compat import command

    command.prepare()
    for package in PACKAGES:
        with contextlib.suppress(ImportError):  # an actor that needs it says so
            importlib.import_module(package)
    jobs: set[int] = set()
    lines = b""
    while True:
        for pid in [pid for pid in jobs if os.waitpid(pid, os.WNOHANG)[0]]:
            jobs.remove(pid)
        if not select.select([0], [], [], _LOOK_S)[0]:
            continue
        content = os.read(0, 2**16)
        if not content:  # the launcher closed it, or ended
            break
        *whole, lines = (lines + content).split(b"\n")
        for line in whole:
            pid = os.fork()
            if pid == 0:
                _become(json.loads(line))
            jobs.add(pid)
    for pid in jobs:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _become(arguments: list[str]) -> NoReturn:
    """In the fork: run a job's script as a process of its own does, and end."""
    from parl_compat import command

    code = 1
    try:
        setproctitle(" ".join([sys.executable, *arguments]))  # `xparl stop` finds jobs by it
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        random.seed()  # each fork has the nursery's generators
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()
        sys.argv = arguments
        command.run_script(arguments[0])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # whatever it is, this process must not go on as a nursery
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
