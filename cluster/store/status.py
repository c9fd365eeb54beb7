"""What a run's counters say at one instant."""

from __future__ import annotations

from typing import NamedTuple

_NO_COUNTS = {"heard", "founder", "opened"}  # among the counters


class TrainerStatus(NamedTuple):
    """A trainer's counters. `behind`: versions; `wait`: the share of its time that it has waited."""

    learned: int
    updates: int
    behind: int
    wait: float
    alive: bool


class Status(NamedTuple):
    """A run at one instant: appended = learned + the sums of dropped and of refused + depth.

    Args:
        depth, bytes: fragments in the stream, those included that trainers work on.
        version: of the weights: how many updates there were.
        dropped, refused: by reason.
        gaps: fragments that samplers have numbered, but did not append.
        steps: environment steps of fragments that were learned from, or dropped.
    """

    depth: int
    bytes: int
    version: int
    appended: int
    learned: int
    dropped: dict[str, int]
    refused: dict[str, int]
    gaps: int
    steps: int
    samplers_alive: int
    trainers: dict[str, TrainerStatus]


def read_status(
    depth: int, counters: list[bytes], trainers: list[bytes], alive: list[bytes], samplers: int
) -> Status:
    """The status that the answer of `scripts.STATUS` holds."""
    count = {name: int(value) for name, value in _pairs(counters) if name not in _NO_COUNTS}
    by_trainer: dict[str, dict[str, str]] = {}
    for field, value in _pairs(trainers):
        name, _, what = field.rpartition("/")
        by_trainer.setdefault(name, {})[what] = value
    version = count["version"]
    return Status(
        depth, count.get("bytes", 0), version, count.get("appended", 0), count.get("learned", 0),
        _by_reason(count, "dropped:"), _by_reason(count, "refused:"), count.get("gaps", 0),
        count.get("steps", 0), samplers,
        {
            name: TrainerStatus(
                int(of.get("learned", 0)), int(of.get("updates", 0)),
                version - int(of.get("at", version)), float(of.get("wait", 0.0)),
                name.encode() in alive,
            )
            for name, of in sorted(by_trainer.items())
        },
    )  # fmt: skip


def _pairs(flat: list[bytes]) -> list[tuple[str, str]]:
    """The names and values of a hash, which a script gives in a row."""
    words = [word.decode() for word in flat]
    return list(zip(words[::2], words[1::2], strict=True))


def _by_reason(count: dict[str, int], prefix: str) -> dict[str, int]:
    return {n.removeprefix(prefix): c for n, c in count.items() if n.startswith(prefix)}
