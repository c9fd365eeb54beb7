"""Batches that are learned from again, beside new ones (`--replay_batches`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rollout import Rollout
from settings.config import Config


class Replay:
    """The last fragments, as they came. Their values, ratios and scaled rewards are computed anew each time.

    Args:
        config: how many are kept, and how many of them an update learns from again.

    Attributes:
        fragments: the kept ones, from the oldest on. Neither the list nor what is in it is changed.
    """

    def __init__(self, config: Config):
        self._drawn = config.replay_batches
        self._kept = config.replay_size or config.replay_batches
        self.fragments: list[Rollout] = []

    def __call__(self, rollout: Rollout, generator: np.random.Generator) -> Rollout:
        """What an update learns from: a new fragment [T, N], and kept ones to its right.

        Those are drawn without replacement, all equally likely; at the run's start there are fewer.
        The new fragment is kept from now on.
        """
        if self._drawn == 0:
            return rollout
        order = generator.permutation(len(self.fragments))
        drawn = [self.fragments[n] for n in order[: self._drawn]]
        own = {name: array.copy() for name, array in rollout.arrays().items()}
        kept = dataclasses.replace(Rollout.of(own), policy_version=rollout.policy_version)
        self.fragments = [*self.fragments, kept][-self._kept :]
        parts = [kept, *drawn]
        together: dict[str, Any] = {
            name: np.concatenate([part.arrays()[name] for part in parts], 1) for name in own
        }
        return dataclasses.replace(
            rollout,
            **together,
            replayed=rollout.reward.shape[1] * len(drawn),
            policy_version=float(np.mean([part.policy_version for part in parts])),
        )

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The kept fragments: arrays, and counters that JSON can hold."""
        arrays = {
            f"replay/{n}/{name}": array
            for n, fragment in enumerate(self.fragments)
            for name, array in fragment.arrays().items()
        }
        return arrays, {"replayed_versions": [part.policy_version for part in self.fragments]}

    def load(self, arrays: Mapping[str, np.ndarray], counters: Mapping[str, Any]) -> None:
        """Put back what `state` returned. Older checkpoints have no fragments."""
        fragments = []
        for n, version in enumerate(counters.get("replayed_versions", [])):
            start = f"replay/{n}/"
            own = {k.removeprefix(start): a for k, a in arrays.items() if k.startswith(start)}
            fragments.append(dataclasses.replace(Rollout.of(own), policy_version=version))
        self.fragments = fragments
