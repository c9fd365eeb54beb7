"""What the commands owe to the terminal that they are typed in."""

from __future__ import annotations

import io
import select
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn


def allow_short_help(arguments: Sequence[str]) -> bool:
    """Whether help is asked for. `--help | head` then ends without a traceback."""
    asked = not {"-h", "--help"}.isdisjoint(arguments)
    if asked:
        end_with_the_reader()
    return asked


def end_without(package: str | None, command: str) -> NoReturn:
    """End a command for which a package is missing, with the remedy; what else is missing, it brings too."""
    remedy = f"run `make venv`, then `.venv/bin/python {command}`"
    print(f"{command}: {package} is not installed: {remedy}", file=sys.stderr)
    sys.exit(2)


def exit_when_asked() -> None:
    """Let SIGTERM and the end of the terminal end this process as errors do, which clean up behind them."""
    stops = (signal.SIGTERM, signal.SIGHUP)

    def end(number: int, frame: FrameType | None) -> NoReturn:
        # another one, such as the terminal's beside the shell's, breaks off no cleaning
        for stop in stops:
            signal.signal(stop, signal.SIG_IGN)
        sys.exit(128 + number)

    for stop in stops:
        if signal.getsignal(stop) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(stop, end)


def print_anything() -> None:
    """From here on what a terminal's encoding lacks, as that of LANG=de_DE does, is printed as its number."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")


def end_with_the_reader() -> None:
    """From here on end by SIGPIPE when nobody reads what is printed, as `head` soon does not.

    In a run this signal stays as Python sets it (ignored), because sockets would end it too.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def nobody_reads() -> bool:
    """Whether what is printed goes to a pipe that nobody reads any more."""
    output = select.poll()
    output.register(1, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))
