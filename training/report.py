"""The report of a run: metrics.jsonl and VisualDL scalars on disk, progress on the terminal."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from rollout import Episode, mean_extras
from settings.config import Config
from training.scalars import Scalars
from training.writes import Appended, Writes

OUTPUT = "the output"
WINDOW = 100  # episodes behind episode_return_mean
_LINE_EVERY_S = 3.0  # on a pipe
SCALARS_EVERY_S = 0.25
_RATE_WINDOW_S = 5.0  # behind the rate that the progress line shows


class Report:
    """Writes a run's metrics and shows its progress. A disk that takes no more does not stop it.

    Args:
        run_dir: the run's folder; files in it are appended to, as a resumed run needs.
        config: the run's settings.
        start_step: environment steps already taken.
        state: the `state` of the run's earlier report, out of a checkpoint.

    Attributes:
        writes: all writes of the run, with those that fail.

    Raises:
        OSError: where the files cannot be opened.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        start_step: int = 0,
        state: dict[str, Any] | None = None,
    ):
        self.writes = Writes(self.say)
        self._metrics = Appended(run_dir / "metrics.jsonl")
        if _ends_within_a_line(run_dir / "metrics.jsonl"):
            with self.writes.attempt("metrics.jsonl"):
                self._metrics.append(b"\n")
        self._scalars = Scalars(run_dir / "visualdl")
        self._scalars_due = 0.0
        state = state or {"time_s": 0.0, "episodes": 0, "returns": []}
        self.returns = deque((Episode(*row) for row in state["returns"]), maxlen=WINDOW)
        self.episodes: int = state["episodes"]
        self._total = config.train_total_steps
        self._before_s, self._start = state["time_s"], time.monotonic()
        self._rates: deque[tuple[float, int]] = deque([(0.0, start_step)])
        self._progress = _bar(config) if sys.stdout.isatty() else None
        self._line_due = 0.0
        if self._progress:
            self._progress.start()

    @property
    def time_s(self) -> float:
        """Seconds trained, resumed parts included."""
        return self._before_s + time.monotonic() - self._start

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
        """Record one update: a line of metrics.jsonl, VisualDL scalars, the progress line."""
        mean_return, mean_length = self.means()
        metrics = {
            **metrics,
            "time_s": round(self.time_s, 3),
            "episode_return_mean": mean_return,
            "episode_length_mean": mean_length,
            "episodes": self.episodes,
            **{f"episode/{k}": v for k, v in mean_extras(e.extras for e in self.returns).items()},
        }
        line = json.dumps({k: _plain(v) for k, v in metrics.items()}) + "\n"
        with self.writes.attempt("metrics.jsonl"):
            self._metrics.append(line.encode())
        now = time.monotonic()
        evaluated = any(name.startswith("eval/") for name in metrics)
        if now >= self._scalars_due or evaluated:
            self._scalars_due = now + SCALARS_EVERY_S
            with self.writes.attempt("visualdl"):
                self._scalars.append(metrics, int(metrics["global_step"]))
        self._show(metrics, now)

    def _show(self, metrics: dict[str, Any], now: float) -> None:
        step = int(metrics["global_step"])
        elapsed = now - self._start
        self._rates.append((elapsed, step))
        while len(self._rates) > 2 and elapsed - self._rates[0][0] > _RATE_WINDOW_S:
            self._rates.popleft()
        (before, from_step), window = self._rates[0], self._rates
        rate = (step - from_step) / max(window[-1][0] - before, 1e-9)
        mean_return = metrics["episode_return_mean"]
        shown = "-" if mean_return is None else f"{mean_return:.1f}"
        losses = "refused"  # an update of NaN has none
        if "loss/policy" in metrics:
            losses = f"policy {metrics['loss/policy']:+.4f} value {metrics['loss/value']:.4f}"
        others = ""  # how several trainers get on
        if "staleness" in metrics:
            others = f"  staleness {metrics['staleness']:.1f}"
        elif "store/depth" in metrics:
            others = f"  {metrics['store/depth']:.0f} fragments in the store"
        if self._progress:
            self._progress.update(
                self._progress.task_ids[0],
                completed=step,
                rate=f"{rate:,.0f}",
                shown=shown,
                losses=losses + others,
            )
        elif now >= self._line_due or step >= self._total:
            self._line_due = now + _LINE_EVERY_S
            left = _clock(max(0, self._total - step) / rate) if rate > 0 else "-"
            self.say(
                f"{step:,}/{self._total:,} steps {min(1.0, step / self._total):4.0%}  "
                f"ETA {left}  {rate:,.0f} steps/s  return {shown}  {losses}{others}"
            )

    def say(self, text: str) -> None:
        """Print a line, above the progress bar where there is one.

        Whoever reads it may be gone, or write it to a disk that is full: the run goes on.
        """
        with self.writes.attempt(OUTPUT):
            if self._progress:
                self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
            else:
                print(text, flush=True)

    def reopen(self) -> None:
        """Go on in new files, as the run's folder was made anew."""
        with self.writes.attempt("metrics.jsonl"):
            self._metrics.reopen()
        with self.writes.attempt("visualdl"):
            self._scalars.reopen()

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
        with self.writes.attempt("metrics.jsonl"):
            self._metrics.close()
        with self.writes.attempt("visualdl"):
            self._scalars.close()


def _bar(config: Config) -> Any:
    from rich import progress

    bar = progress.Progress(
        progress.TextColumn("{task.percentage:3.0f}%"),
        progress.BarColumn(bar_width=20),
        progress.MofNCompleteColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[rate]} steps/s  return {task.fields[shown]}  {task.fields[losses]}"),
        refresh_per_second=4,
    )  # fmt: skip
    bar.add_task("train", total=config.train_total_steps, rate="-", shown="-", losses="")
    return bar


def _ends_within_a_line(path: Path) -> bool:
    """Whether a run was killed while it wrote the last line."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() not in (b"", b"\n")


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: it has no NaN, so a number that is not known yet is null."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
