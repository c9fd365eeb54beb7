"""When a run is over, and how its processes are ended where nothing else ends them."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import threading
import time
from typing import TextIO

import psutil

from settings.config import Config
from training.report import WINDOW, Report


def reason_to_end(config: Config, progress: float, report: Report) -> str | None:
    """Why a run is over, by its counters and training episodes: None where it is not."""
    if progress >= 1.0:
        return "finished"
    mean_return, _ = report.means()
    if len(report.returns) == WINDOW and solves(config, mean_return):
        return "solved"
    limit = config.max_minutes
    return "max_minutes" if limit is not None and report.time_s >= 60 * limit else None


def solves(config: Config, score: float | None) -> bool:
    """Whether a score is the one that the run is to stop at."""
    wanted = config.solve_score
    return wanted is not None and score is not None and score >= wanted


def end_children() -> None:
    """Kill the processes that compile, also those that another thread starts meanwhile."""
    deadline = time.monotonic() + 3
    while children := psutil.Process().children(recursive=True):
        # the leaves first, so that each one left over is reaped by its parent
        for process in reversed(children):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(children, timeout=0.5)
        if time.monotonic() > deadline:
            return


def leave_blocked_output() -> None:
    """Where nobody takes what is printed, such as a terminal after Ctrl-S, print to nowhere.

    Otherwise a run that was asked to end would wait for its reader. Prints of other threads that
    wait go on, to nowhere.
    """
    output = select.poll()
    for descriptor in (1, 2):
        output.register(descriptor, select.POLLOUT)
    # one that is closed, or whose reader is gone, is reported too: nothing waits for it
    blocked = {1, 2} - {descriptor for descriptor, _ in output.poll(0)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in blocked:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    # another writer: a signal may have come into the midst of the old one's work
    if 1 in blocked:
        sys.stdout = _writer(1)
    if 2 in blocked:
        sys.stderr = _writer(2)
    for thread in threading.enumerate() if blocked else ():
        if thread is not threading.main_thread() and thread.ident is not None:
            signal.pthread_kill(thread.ident, signal.SIGALRM)  # its write is tried again


def _writer(descriptor: int) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)))
