"""When a run is over, and how its processes are ended where nothing else ends them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

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


def reached(config: Config, reason: str | None, evaluated: float | None) -> Iterator[str]:
    """What of its settings a run that is resumed has reached already, and so will end by soon.

    Args:
        reason: of `reason_to_end`.
        evaluated: the mean return of the last evaluation.
    """
    if reason == "solved" or solves(config, evaluated):
        yield (
            f"solve_score is {config.solve_score:g}, which this run has reached: it ends after an"
            f" update or soon. Give a higher one, or --solve_score None, to train on"
        )
    elif reason == "max_minutes":
        yield (
            f"max_minutes is {config.max_minutes:g}, which this run has trained for: it ends"
            f" after an update. Give more, to train on"
        )


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
