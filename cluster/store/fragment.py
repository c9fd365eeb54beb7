"""A fragment as the store holds it: a message of `cluster.wire`, made by a sampler, read by a trainer."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from cluster import wire
from cluster.sampler import TimedEpisode, in_order, read_episodes, read_rate
from rollout import Rollout, RolloutSpec


class Refused(Exception):
    """A fragment that cannot be learned from.

    Args:
        reason: `damaged` (it is no message, or not the one that was sent) or `unfit` (it is a message,
            but no fragment of this run).
        why: a sentence.
    """

    def __init__(self, reason: str, why: str):
        super().__init__(why)
        self.reason = reason


class Fragment(NamedTuple):
    """One fragment of one sampler.

    Args:
        id: in the stream.
        sampler: the sampler's number.
        number: the fragment's among the sampler's, from 0.
        rollout: [T, the sampler's environments], with its version, episodes and environments.
    """

    id: bytes
    sampler: int
    number: int
    rollout: Rollout

    @property
    def envs(self) -> tuple[int, int]:
        return self.rollout.env_ranges[0]


def pack_fragment(
    sampler: int, number: int, version: int, reset: bool, envs: tuple[int, int],
    episodes: list[TimedEpisode], rollout: Rollout, compress: bool,
) -> bytes:  # fmt: skip
    """A fragment as a message.

    Args:
        version: of the weights that acted.
        reset: the environments were reset before the first row.
        envs: the run's environments [first, last).
    """
    meta = {
        "sampler": sampler, "number": number, "version": version, "reset": reset,
        "envs": envs, "episodes": episodes, "raw_sps": rollout.raw_sps,
    }  # fmt: skip
    return wire.pack(meta, rollout.arrays(), compress)


def read_fragment(
    id_: bytes, message: bytes, spec: RolloutSpec, ranges: list[tuple[int, int]], newest: int
) -> Fragment:
    """The fragment that a message holds; its arrays are views of the message where they can be.

    Args:
        ranges: those of the run's environments that a sampler can have, all of one size.
        newest: the version of the newest weights.

    Raises:
        Refused: where it is none, or none of this run.
    """
    envs = ranges[0][1] - ranges[0][0]
    shapes = spec.arrays(envs)
    size = sum(wire.aligned(math.prod(shape) * kind.itemsize) for shape, kind in shapes.values())
    try:
        meta, arrays = wire.unpack(message, largest=size)
    except wire.WireError as error:
        raise Refused("damaged", str(error)) from None
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if found != shapes:
        raise Refused("unfit", f"its arrays are {_in_words(found)}, not {_in_words(shapes)}")
    sampler, number, version = (_whole(meta, name) for name in ("sampler", "number", "version"))
    if version > newest:
        raise Refused("unfit", f"its version is {version}, but the newest weights are {newest}")
    first_last = meta.get("envs")
    if not isinstance(first_last, list) or tuple(first_last) not in ranges:
        raise Refused("unfit", f"its environments are {first_last}, which no sampler here has")
    if not isinstance(meta.get("reset"), bool):
        raise Refused(
            "unfit", f"its reset is {meta.get('reset')!r}, which is neither true nor false"
        )
    rollout = Rollout.of(arrays)
    rollout.policy_version, rollout.env_ranges = version, [(first_last[0], first_last[1])]
    rollout.reset = np.full(envs, meta["reset"])
    try:
        rollout.episodes = in_order(read_episodes(meta.get("episodes")))
        rollout.raw_sps = read_rate(meta.get("raw_sps"))
    except ValueError as error:
        raise Refused("unfit", str(error)) from None
    return Fragment(id_, sampler, number, rollout)


def _whole(meta: dict[str, Any], name: str) -> int:
    value = meta.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise Refused("unfit", f"its {name} is {value!r}, which is no number of at least 0")
    return value


def _in_words(shapes: dict[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{name} {kind} {shape}" for name, (shape, kind) in sorted(shapes.items()))
