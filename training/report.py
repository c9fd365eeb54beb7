"""The report of a run: metrics.jsonl, trackers such as VisualDL, and progress on the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

from rollout import Episode, mean_extras
from settings.config import Config
from training.film import NoFilm, film_best
from training.summary import plain
from training.terminal import Lines, Shown, Terminal
from training.trackers.make import make_trackers
from training.trackers.tags import tagged
from training.trackers.tracker import Tracker, TrackerEnded
from training.usage import Usage
from training.writes import Appended, Writes

OUTPUT = "the output"
WINDOW = 100  # episodes behind episode_return_mean
SCALARS_EVERY_S = 0.25
_RATE_WINDOW_S = 5.0  # behind the rate that the terminal shows


class Report:
    """Writes a run's metrics and shows its progress. A disk that takes no more does not stop it.

    Args:
        run_dir: the run's folder; files in it are appended to, as a resumed run needs.
        config: the run's settings.
        device: the learner's.
        start_step: environment steps already taken.
        state: the `state` of the run's earlier report, out of a checkpoint.

    Attributes:
        writes: all writes of the run, with those that fail.

    Raises:
        OSError: where the files cannot be opened.
        UserError: where a tracker cannot begin.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        device: str = "cpu",
        start_step: int = 0,
        state: dict[str, Any] | None = None,
    ):
        self.writes = Writes(self.say)
        self._saying = threading.RLock()  # several threads do
        self._log = Appended(run_dir / "log.txt")
        self._run_dir = run_dir
        self._metrics = Appended(run_dir / "metrics.jsonl")
        self._trackers = make_trackers(config, run_dir)
        self._tracked_from = 0.0  # when the trackers are told next
        self._terminal = _terminal(config)
        if _ends_within_a_line(run_dir / "metrics.jsonl"):
            with self.writes.attempt("metrics.jsonl"):
                self._metrics.append(b"\n")
        self._usage = Usage(device)
        state = state or {"time_s": 0.0, "episodes": 0, "returns": []}
        self.returns = deque((Episode(*row) for row in state["returns"]), maxlen=WINDOW)
        self.episodes: int = state["episodes"]
        self._total = config.train_total_steps
        self._before_s, self._start = state["time_s"], time.monotonic()
        self._filmed_s = 0.0  # is no time of training
        self._rates: deque[tuple[float, int]] = deque([(0.0, start_step)])

    @property
    def pages(self) -> str:
        """The commands, or addresses, that show the run's curves; "" where it has none."""
        return "; ".join(tracker.page for tracker in self._trackers if tracker.page)

    @property
    def time_s(self) -> float:
        """Seconds trained, resumed parts included."""
        return self._before_s + time.monotonic() - self._start - self._filmed_s

    def add_episodes(self, episodes: list[Episode]) -> None:
        self.returns.extend(episodes)
        self.episodes += len(episodes)

    def state(self) -> dict[str, Any]:
        """The part of a report that a checkpoint keeps."""
        return {"time_s": self.time_s, "episodes": self.episodes, "returns": list(self.returns)}

    def means(self) -> tuple[float | None, float | None]:
        """Mean return and length of the last episodes, None before the first."""
        if not self.returns:
            return None, None
        count = len(self.returns)
        return (
            sum(e.episode_return for e in self.returns) / count,
            sum(e.length for e in self.returns) / count,
        )

    def write(self, metrics: dict[str, Any]) -> None:
        """Record one update: a line of metrics.jsonl, the trackers, the terminal."""
        mean_return, mean_length = self.means()
        metrics = {
            **metrics,
            "time_s": round(self.time_s, 3),
            "episode_return_mean": mean_return,
            "episode_length_mean": mean_length,
            "episodes": self.episodes,
            **{f"episode/{k}": v for k, v in mean_extras(e.extras for e in self.returns).items()},
            **self._usage.measure(),
        }
        with self._saying, self.writes.attempt("log.txt"):
            self._log.append(b"")  # what the disk has not taken yet
        line = json.dumps({k: plain(v) for k, v in metrics.items()}) + "\n"
        with self.writes.attempt("metrics.jsonl"):
            self._metrics.append(line.encode())
        step, now = int(metrics["global_step"]), time.monotonic()
        measured = any(name.startswith(("eval/", "system/")) for name in metrics)
        if now >= self._tracked_from or measured:
            self._tracked_from = now + SCALARS_EVERY_S
            for at, values in tagged(metrics).items():
                self._track(methodcaller("scalars", values, at))
        # a thread that prints may wait for a reader, and a signal does not end the wait for its lock
        # within Python's writer, but does for this one
        with self._saying, self.writes.attempt(OUTPUT):
            self._terminal.show(Shown(step, self._total, self._rate(now, step), metrics))

    def _rate(self, now: float, step: int) -> float:
        """Steps a second of late."""
        rates, elapsed = self._rates, now - self._start
        rates.append((elapsed, step))
        while len(rates) > 2 and elapsed - rates[0][0] > _RATE_WINDOW_S:
            rates.popleft()
        before, from_step = rates[0]
        return (step - from_step) / max(elapsed - before, 1e-9)

    def _track(self, tell: Callable[[Tracker], None]) -> None:
        """Tell every tracker; one that takes nothing any more is left out from then on."""
        for tracker in list(self._trackers):
            try:
                with self.writes.attempt(tracker.name):
                    tell(tracker)
            except TrackerEnded as error:
                self._trackers.remove(tracker)
                self.writes.failing.pop(tracker.name, None)
                self.say(f"{tracker.name} is lost: {error}. The run goes on without it")

    def film(self, step: int) -> None:
        """Film the best policy, and show the film to the trackers."""
        self.say("filming the best policy")
        began = time.monotonic()
        try:
            path = film_best(self._run_dir)
        except NoFilm as error:
            self.say(f"the best policy cannot be filmed: {error}")
            return
        finally:
            self._filmed_s += time.monotonic() - began
        self.say(f"film of the best policy: {path}")

        def show(tracker: Tracker) -> None:
            try:
                tracker.film(path, step)
            except NoFilm as error:
                self.say(f"{tracker.name} does not show the film: {error}")

        self._track(show)

    def say(self, text: str) -> None:
        """Print a line, above the panel where there is one, and keep it in log.txt.

        Whoever reads it may be gone, or write it to a disk that is full: the run goes on.
        """
        with self._saying:
            with self.writes.attempt(OUTPUT):
                self._terminal.say(text)
            self.log(text)

    def log(self, text: str) -> None:
        """Keep a line in log.txt alone."""
        with self._saying, self.writes.attempt("log.txt"):
            self._log.append(
                f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode(errors="replace")
            )

    def reopen(self) -> None:
        """Go on in new files, as the run's folder was made anew."""
        with self.writes.attempt("metrics.jsonl"):
            self._metrics.reopen()
        with self._saying, self.writes.attempt("log.txt"):
            self._log.reopen()
        self._track(lambda tracker: tracker.reopen())

    def close(self) -> None:
        with self.writes.attempt("metrics.jsonl"):
            self._metrics.close()
        self._track(lambda tracker: tracker.close())
        with self.writes.attempt(OUTPUT):
            self._terminal.close()
        with contextlib.suppress(OSError):  # whatever is said of that could not be kept
            self._log.close()


def _terminal(config: Config) -> Terminal:
    """A panel, where the output is a terminal that can move its cursor; else lines."""
    if sys.stdout.isatty():
        from rich.console import Console

        from training.panel import Panel

        console = Console(file=sys.stdout, highlight=False)
        if not console.is_dumb_terminal:
            return Panel(console, f"{config.env}, seed {config.seed}")
    return Lines()


def _ends_within_a_line(path: Path) -> bool:
    """Whether a run was killed while it wrote the last line."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() not in (b"", b"\n")
