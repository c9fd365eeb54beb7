"""A terminal with a program in it: what the program has drawn, as a person sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte


class Terminal:
    """A program in a pseudo-terminal.

    Args:
        command: starts it.
        cwd: where.
        columns, lines: of the terminal.
        echo: whether it shows what is typed.

    Attributes:
        screen: what is on it.
        before, after: how it treats what is typed, at the program's start and at its end.
    """

    def __init__(
        self, command: Sequence[str], cwd: Path, columns: int = 100, lines: int = 30,
        echo: bool = False,
    ):  # fmt: skip
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = pty.openpty()
        self.resize(columns, lines)
        settings = termios.tcgetattr(self._ours)
        settings[3] &= ~(0 if echo else termios.ECHO)
        termios.tcsetattr(self._ours, termios.TCSANOW, settings)
        self.before = termios.tcgetattr(self._ours)
        self.process = subprocess.Popen(
            # it owns the terminal, so that Ctrl-C reaches it
            ["setsid", "--ctty", "--wait", *command],
            cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs,
            env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
            | {"TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(theirs)

    @property
    def text(self) -> list[str]:
        """The lines that are not empty."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def resize(self, columns: int, lines: int) -> None:
        """Make the window larger or smaller. Lines that are too long are cut."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def wait_for(self, shown: Callable[[list[str]], bool], timeout: float = 60) -> None:
        """Wait until the screen shows something."""
        deadline = time.monotonic() + timeout
        while not shown(self.text):
            assert self._read(deadline), "\n".join(self.text)

    def end(self, timeout: float = 60) -> int:
        """Wait for the program's end; its exit code."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        self.after = termios.tcgetattr(self._ours)
        os.close(self._ours)
        return self.process.wait(timeout=timeout)

    def _read(self, deadline: float) -> bool:
        """Draw what comes next; False where nothing will."""
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        try:
            part = os.read(self._ours, 65536) if ready else b""
        except OSError:  # how Linux says that the other side is closed
            part = b""
        self._stream.feed(part)
        return bool(part)
