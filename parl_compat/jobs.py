"""A worker's jobs, as forks of a process that has done an actor's imports.

A job is the process of one actor, and an actor begins with some seconds of imports. This process does
them once on each machine, and shares their memory with all of its jobs. It runs one thread and holds
no connection but its own, so a copy of it is whole.

    launcher (of PARL's worker)           nursery: `python -m parl_compat.jobs`
    a line: the job's arguments     ->    forks a job
    the pipe's end                  ->    kills its jobs, and ends

With a job ends what its environments have started, such as a game server: they are one process group.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import select
import signal
import sys
import time
import traceback
from typing import NoReturn

from setproctitle import getproctitle, setproctitle

from parl_compat import command

# Whatever of these a machine has: an actor's other modules are the learner's, and come with it.
PACKAGES = ("numpy", "scipy", "torch", "numba", "gymnasium", "mujoco")
_LOOK_S = 1.0  # how often it looks which jobs have ended


def serve() -> None:
    """Run the nursery: fork jobs for as long as the launcher lives."""
    getproctitle()  # it finds where the title stands only while `os.environ` is as it was
    command.prepare()
    for package in PACKAGES:
        with contextlib.suppress(ImportError):  # an actor that needs it says so
            importlib.import_module(package)
    if numba := sys.modules.get("numba"):
        numba.njit(lambda x: x)(0.0)  # the first function has numba import the rest of itself
    jobs: set[int] = set()
    lines = b""
    while True:
        jobs = {pid for pid in jobs if not _has_ended(pid)}
        if not select.select([0], [], [], _LOOK_S)[0]:
            continue
        content = os.read(0, 2**16)
        if not content:  # the launcher closed it, or ended
            break
        *whole, lines = (lines + content).split(b"\n")
        for line in whole:
            jobs.add(_fork(json.loads(line)))
    for pid in jobs:
        _end_group(pid)


def _has_ended(pid: int) -> bool:
    """Whether a job has ended; then what it leaves behind is ended too."""
    # WNOWAIT: until it is waited for, the id of its group is nobody else's
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        return False
    _end_group(pid)
    return True


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # a job has left its group
        os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _fork(arguments: list[str]) -> int:
    """Start a job; its process id. Where the machine has no room for a process, wait for some."""
    while True:
        try:
            pid = os.fork()
        except OSError as error:
            print(f"a job cannot be started, and is tried again: {error}", file=sys.stderr)
            time.sleep(_LOOK_S)
            continue
        if pid == 0:
            _become(arguments)
        os.setpgid(pid, pid)
        return pid


def _become(arguments: list[str]) -> NoReturn:
    """In the fork: run a job's script as a process of its own does, and end."""
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
