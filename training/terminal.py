"""What a run shows of itself while it trains: lines on a pipe, a panel on a terminal."""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Protocol

_LINE_EVERY_S = 3.0


class Shown(NamedTuple):
    """The state of a run after an update: `step` of `total`, and steps a second of late."""

    step: int
    total: int
    rate: float
    metrics: dict[str, Any]

    @property
    def share(self) -> float:
        return min(1.0, self.step / self.total)

    @property
    def left(self) -> str:
        """How long the run will go on."""
        return _clock(max(0, self.total - self.step) / self.rate) if self.rate > 0 else "-"

    def number(self, name: str, form: str) -> str:
        """A metric in words; a dash where there is none."""
        value = self.metrics.get(name)
        return "-" if value is None else f"{value:{form}}"

    @property
    def others(self) -> str:
        """How several trainers get on."""
        if "staleness" in self.metrics:
            return f"  staleness {self.metrics['staleness']:.1f}"
        if "store/depth" in self.metrics:
            return f"  {self.metrics['store/depth']:.0f} fragments in the store"
        return ""


class Terminal(Protocol):
    """Whoever reads what it prints may be gone, or write it to a full disk: then OSError is raised."""

    def show(self, shown: Shown) -> None:
        """Show the state after an update."""
        ...

    def say(self, text: str) -> None:
        """Print a sentence."""
        ...

    def close(self) -> None: ...


class Lines:
    """Prints a line now and then."""

    def __init__(self) -> None:
        self._due = 0.0

    def show(self, shown: Shown) -> None:
        now = time.monotonic()
        if now < self._due and shown.step < shown.total:
            return
        self._due = now + _LINE_EVERY_S
        losses = "refused"  # an update of NaN has none
        if "loss/policy" in shown.metrics:
            policy, value = shown.metrics["loss/policy"], shown.metrics["loss/value"]
            losses = f"policy {policy:+.4f} value {value:.4f}"
        self.say(
            f"{shown.step:,}/{shown.total:,} steps {shown.share:4.0%}  ETA {shown.left}"
            f"  {shown.rate:,.0f} steps/s  return {shown.number('episode_return_mean', '.1f')}"
            f"  {losses}{shown.others}"
        )

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        """There is nothing to end."""


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
