"""Starts processes of our own in milliseconds: forks of a process that has done their imports.

A sampler or an evaluator begins with some seconds of imports. The nursery does them once, at the
first start of each module; every child is a copy of it, which shares the memory of the imports. The
nursery runs one thread and holds no connection but its own, so a copy of it is whole. It outlives
the learner by as long as its children do, and ends what they leave behind.

`train.py` makes the nursery early (`Nursery.split_off`), as a copy of itself: the learner needs most
of the same imports. Elsewhere the nursery is a process that imports for itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from common.sources import ROOT

_MESSAGE = 4096  # bytes at most
_CLOSE_S, _REAP_S = 1.0, 0.1  # for its end: after its children's; after it was killed
_LOOKS_EVERY_S = 0.002
_FILES = 8  # that come with a message, at most


class _Copy:
    """A copy of this process, as far as its end is concerned."""

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        """None while it runs."""
        ended, _ = os.waitpid(self.pid, os.WNOHANG)
        return 0 if ended else None


class Nursery:
    """The learner's side: requests go out at once, and answers are read when they are needed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal may end the run while it is held
        self._process: subprocess.Popen[bytes] | _Copy | None = None
        self._control: socket.socket | None = None
        self._asked = 0
        self._answers: dict[int, dict[str, Any]] = {}

    def fork(self, module: str, descriptors: Sequence[int], niceness: int) -> int:
        """Start a process that runs `serve()` of a module. Returns at once.

        It has the learner's variables and working folder of this moment.

        Args:
            descriptors: open files that it inherits; `cluster.child.parent` gives them there.
            niceness: added to the learner's.

        Returns:
            a ticket, for `pid`.

        Raises:
            OSError: where the nursery cannot be started.
        """
        origin = {"nice": niceness, "cwd": os.getcwd(), "env": dict(os.environ)}
        # in a file of memory, as the variables can be longer than a message
        with open(os.memfd_create("dppo-origin"), "w+b", buffering=0) as file, self._lock:
            file.write(json.dumps(origin).encode())
            request, files = {"fork": module}, [file.fileno(), *descriptors]
            try:
                return self._send(request, files)
            except ConnectionError:  # it was killed: another one
                self._end(_REAP_S)
                return self._send(request, files)

    def pid(self, ticket: int) -> int | None:
        """The process of a ticket; None where it could not be started."""
        with self._lock:
            return self._answer(ticket).get("pid")

    def exit_code(self, pid: int) -> int | None:
        """The exit code of a child that has ended, negative for a signal; None while it runs.

        Where the nursery that forked it is gone, nobody knows the code: it is 0 then.
        """
        with self._lock, contextlib.suppress(ConnectionError):
            answer = self._answer(self._send({"ended": pid}, []))
            if "code" in answer:
                return answer["code"]
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return 0
        return None

    def close(self) -> None:
        """End the nursery, once its children have ended; it is waited for for a second."""
        with self._lock:
            self._end(_CLOSE_S)

    def _end(self, timeout: float) -> None:
        if self._process is not None and self._control is not None:
            self._control.close()
            deadline = time.monotonic() + timeout
            while self._process.poll() is None and time.monotonic() < deadline:
                time.sleep(_LOOKS_EVERY_S)
        self._process = self._control = None
        self._answers.clear()

    def _send(self, request: dict[str, Any], descriptors: Sequence[int]) -> int:
        if self._control is None:
            self._start()
        assert self._control is not None
        self._asked += 1
        message = json.dumps(request | {"ticket": self._asked}).encode()
        socket.send_fds(self._control, [message], descriptors)
        return self._asked

    def _answer(self, ticket: int) -> dict[str, Any]:
        """The answer with a ticket; nothing where the nursery ended before it gave one."""
        with contextlib.suppress(ConnectionError):
            while ticket not in self._answers and self._control is not None:
                message = self._control.recv(_MESSAGE)
                if not message:
                    break
                answer = json.loads(message)
                self._answers[answer["ticket"]] = answer
        return self._answers.pop(ticket, {})

    def split_off(self, modules: Sequence[str]) -> None:
        """Import modules, and make the nursery as a copy of this process, in so many milliseconds.

        Call it before this process opens files and starts threads: where it has threads of Python's
        already, the nursery is made at the first start, as elsewhere.

        Args:
            modules: those that the nursery's children will run, and what they will import.
        """
        for module in modules:
            importlib.import_module(module)
        _load_numba()
        if self._control is not None or threading.active_count() > 1:
            return
        # without the lock, which the copy would hold for ever: there is no other thread
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        if (pid := os.fork()) == 0:
            _split(theirs.detach())
        theirs.close()
        self._process, self._control = _Copy(pid), ours

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        code = "import sys; from cluster.nursery import serve; serve(int(sys.argv[1]))"
        self._process = subprocess.Popen(
            # -P: a `model.py` in the folder worked in must not hide the project's own
            [sys.executable, "-P", "-W", "ignore", "-c", code, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            process_group=0,  # a Ctrl-C is the learner's to handle
        )
        theirs.close()
        self._control = ours


NURSERY = Nursery()  # of this process
atexit.register(NURSERY.close)


def _split(control: int) -> NoReturn:
    """In the copy of the learner: be its nursery.

    Args:
        control: the descriptor of the connection, the only one that stays open.
    """
    try:
        os.setpgid(0, 0)  # a Ctrl-C is the learner's to handle
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2 and descriptor != control:
                with contextlib.suppress(OSError):  # the one that has listed them
                    os.close(descriptor)
        warnings.simplefilter("ignore")
        serve(control)
    except BaseException:  # whatever it is, this process must not go on as a learner
        traceback.print_exc()
    finally:
        os._exit(1)


def serve(descriptor: int) -> None:
    """Run the nursery: fork for as long as the learner lives.

    Args:
        descriptor: of its connection.
    """
    # SIGTERM may be ignored here, and would be in the children: exec keeps what is ignored
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    control = socket.socket(fileno=descriptor)
    codes: dict[int, int] = {}
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE, _FILES)
        except ConnectionError:  # the learner ended before it had read an answer
            break
        if not message:  # the learner closed it, or ended
            break
        request = json.loads(message)
        answer: dict[str, Any] = {"ticket": request["ticket"]}
        try:
            if "fork" in request:
                importlib.import_module(request["fork"])
                if "numba" in sys.modules:
                    _load_numba()
                gc.freeze()  # a collection in the copy then touches, and copies, no memory of ours
                answer["pid"] = os.fork()
                if answer["pid"] == 0:
                    control.close()
                    _become(request, descriptors)
                codes.pop(answer["pid"], None)  # of an earlier process of this number
                os.setpgid(answer["pid"], 0)  # as the child does itself, but before its id is known
            else:
                # it may be an earlier nursery's, which was killed
                with contextlib.suppress(ChildProcessError):
                    answer["code"] = _code(request["ended"], codes)
        except Exception:  # the child's connection closes, which tells its parent
            traceback.print_exc()
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ConnectionError):  # the learner ended: seen when it is listened to
            control.send(json.dumps(answer).encode())
    nothing = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):  # whoever reads the learner's output need not wait for its children
        os.dup2(nothing, output)
    with contextlib.suppress(ChildProcessError):  # none is left
        while True:
            _reap(0)
    os._exit(0)


@functools.cache
def _load_numba() -> None:
    """Have numba import the rest of itself, which it does for the first function."""
    import numba

    numba.njit(lambda x: x)(0.0)


def _code(pid: int, codes: dict[int, int]) -> int | None:
    """The exit code of a child, which stays known once it was asked for."""
    if pid not in codes and (code := _reap(os.WNOHANG, pid)) is not None:
        codes[pid] = code
    return codes.get(pid)


def _reap(option: int, pid: int | None = None) -> int | None:
    """End what a child that has ended leaves behind, such as a game server; then let its id go.

    Args:
        option: of `os.waitid`: to wait for it (0) or not (WNOHANG).
        pid: the child. Default: any.

    Returns:
        its exit code; None where it runs.

    Raises:
        ChildProcessError: where there is no such child.
    """
    which = (os.P_ALL, 0) if pid is None else (os.P_PID, pid)
    # WNOWAIT: until it is waited for, the id of its group is nobody else's
    ended = os.waitid(*which, os.WEXITED | os.WNOWAIT | option)
    if ended is None:
        return None
    with contextlib.suppress(ProcessLookupError):  # it ended before it had a group
        os.killpg(ended.si_pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(ended.si_pid, 0)[1])


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """In the fork: run `serve()` of a module as a process of its own does, and end."""
    code = 1
    try:
        os.setpgid(0, 0)
        with open(descriptors[0], "rb") as file:
            file.seek(0)
            origin = json.load(file)
        os.nice(origin["nice"])
        if origin["nice"] > 0:
            # so that a process that the learner wakes does not take its core; not everybody may ask for it
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.environ.clear()
        os.environ.update(origin["env"])
        os.chdir(origin["cwd"])
        sys.argv[1:] = map(str, descriptors[1:])
        importlib.import_module(request["fork"]).serve()
        code = 0
    except BaseException:  # whatever it is, this process must not go on as a nursery
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
