"""What the commands owe to the terminal that they are typed in."""

from __future__ import annotations

import signal
from collections.abc import Sequence


def allow_short_help(arguments: Sequence[str]) -> bool:
    """Whether help is asked for. `--help | head` then ends without a traceback, by SIGPIPE.

    In a run this signal stays as Python sets it (ignored), because sockets would end it too.
    """
    asked = not {"-h", "--help"}.isdisjoint(arguments)
    if asked:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return asked
