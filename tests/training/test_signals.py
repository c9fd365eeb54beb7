"""A run that is asked to end does so though nobody reads its output."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT, wait_until
from tests.screen import Terminal
from tests.training.runs import SMALL

pytestmark = pytest.mark.slow  # these start processes

TRAINING = (sys.executable, "train.py", "--env", "CartPole-v1", *SMALL, "--samplers", "2",
            "--train_total_steps", "100000000")  # fmt: skip
WRITE = {"x86_64": "1", "aarch64": "64"}  # the number of the system's call
PAGE = 4096
# the first one prints in a thread of its own, so that the main thread waits for the writer's lock
IGNORING = """
import sys, threading
from training.signals import StopSignals
signals = StopSignals(print, 1.0)
signals.ignore()
print("ready", flush=True)
input()
if sys.argv[1] == "thread":
    thread = threading.Thread(target=print, args=("x" * 10_000,), kwargs={"flush": True})
    thread.start()
    thread.join()
else:
    print("x" * 10_000, flush=True)
sys.exit(7)
"""


def prints(pid: int) -> bool:
    """Whether one of a process's threads waits for a reader."""
    waiting = [WRITE[os.uname().machine], "0x1"]
    for call in Path(f"/proc/{pid}/task").glob("*/syscall"):
        with contextlib.suppress(OSError):  # the thread has just ended
            if call.read_text().split()[:2] == waiting:
                return True
    return False


class Unread:
    """A program whose output goes to a pipe that holds a page."""

    def __init__(self, command: Sequence[str]):
        self._reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PAGE)
        # otherwise Python would write without a buffer, and without its lock
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=writing, stderr=writing, env=env
        )
        self._filling = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
        os.close(writing)

    def read_until(self, words: bytes) -> None:
        said = b""
        while words not in said:
            assert select.select([self._reading], [], [], 60)[0], said
            assert self.process.poll() is None, said
            said += os.read(self._reading, PAGE)

    def fill(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self._filling, b"x")

    def prints(self) -> bool:
        return prints(self.process.pid)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._reading)
        os.close(self._filling)


@contextlib.contextmanager
def unread(*command: str) -> Iterator[Unread]:
    with contextlib.closing(Unread(command)) as program:
        yield program


def test_a_run_whose_pipe_nobody_reads_ends_when_it_is_asked(tmp_path):
    with unread(*TRAINING, "--run_dir", str(tmp_path / "run")) as run:
        run.read_until(b"run folder")
        run.fill()
        wait_until(run.prints, 60, "the next line")
        run.process.send_signal(signal.SIGTERM)
        assert run.process.wait(30) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["exit_reason"] == "sigterm"


def test_a_run_whose_terminal_is_stopped_ends_when_it_is_asked(tmp_path):
    terminal = Terminal([*TRAINING, "--run_dir", str(tmp_path / "run")], ROOT)
    terminal.wait_for(lambda text: any("steps/s" in line for line in text))
    terminal.type(b"\x13")  # Ctrl-S
    wait_until(lambda: prints(terminal.process.pid), 30, "the panel's thread")
    terminal.process.terminate()
    assert terminal.end(30) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["exit_reason"] == "sigterm"


@pytest.mark.parametrize("where", ["main", "thread"])
def test_a_signal_at_the_end_lets_what_is_printed_go_to_nowhere(where):
    with unread(sys.executable, "-c", IGNORING, where) as program:
        program.read_until(b"ready")
        program.fill()
        assert program.process.stdin is not None
        program.process.stdin.write(b"\n")
        program.process.stdin.flush()
        wait_until(program.prints, 30, "the print")
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(30) == 7
