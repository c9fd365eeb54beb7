"""The two messages between learner and samplers: `Rollout` up, `Weights` down.

Shapes: T steps, N environments, time first. `obs[t]` is what the policy saw when it chose
`action[t]`; `obs[T]` is the bootstrap row. Autoreset is NEXT_STEP: the row after an episode's end
holds the episode's true final observation, and that row's own action was ignored (`valid` False).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np


class Weights(NamedTuple):
    """A copy of a model's parameters and buffers after `version` updates."""

    version: int
    arrays: dict[str, np.ndarray]


class Episode(NamedTuple):
    """An episode that ended in a fragment: its raw return, its length in steps, what else is known.

    `extras` are numbers by name, such as `win/coacAI`, that a report averages.
    """

    episode_return: float
    length: int
    extras: dict[str, float] = {}  # noqa: RUF012 - never changed


def mean_extras(extras: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each named number over the episodes that have it."""
    values: dict[str, list[float]] = {}
    for episode in extras:
        for name, value in episode.items():
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(found)) for name, found in values.items()}


@dataclass(frozen=True)
class RolloutSpec:
    """Shapes and dtypes of a rollout's arrays.

    Args:
        steps: T.
        obs_shape, obs_dtype: of one stored observation.
        action_shape, action_dtype: of one action.
        frame_stack: frames that make up an observation, or 0. Where it is k > 0, `obs` holds
            single frames and `history` the k - 1 frames before the first row.
        mask_size: entries of an action mask, or 0 where there is none.
        sub_actions: K where a log-probability is kept for each sub-action, or 0.
        state_size: S of a recurrent network's state before the first row, `state` [1, N, S], or 0.
    """

    steps: int
    obs_shape: tuple[int, ...]
    obs_dtype: str
    action_shape: tuple[int, ...]
    action_dtype: str
    frame_stack: int = 0
    mask_size: int = 0
    sub_actions: int = 0
    state_size: int = 0

    def arrays(self, envs: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name -> (shape, dtype) of the arrays of a rollout of `envs` environments."""
        t, n = self.steps, envs
        per_sub_action = (self.sub_actions,) if self.sub_actions else ()
        shapes = {
            "obs": ((t + 1, n, *self.obs_shape), self.obs_dtype),
            "action": ((t, n, *self.action_shape), self.action_dtype),
            "behaviour_log_prob": ((t, n, *per_sub_action), "float32"),
            "reward": ((t, n), "float32"),
            "terminated": ((t, n), "bool"),
            "truncated": ((t, n), "bool"),
            "valid": ((t, n), "bool"),
        }
        if self.frame_stack:
            shapes["history"] = ((self.frame_stack - 1, n, *self.obs_shape), self.obs_dtype)
        if self.mask_size:
            shapes["action_mask"] = ((t, n, self.mask_size), "bool")
        if self.state_size:
            shapes["state"] = ((1, n, self.state_size), "float32")
        return {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}


@dataclass
class Rollout:
    """One fragment of T steps of N environments. The arrays are those of `RolloutSpec.arrays`.

    `policy_version` is that of the weights that acted; where samplers had different ones, the mean.
    The last `replayed` columns were in earlier fragments: they have been learned from before.
    The first `carried` rows were in the fragment before it too, but for environments that were reset.
    `reset` [N] bool: the environments that were reset before the first row.
    An environment whose sampler was lost has no valid row; its columns repeat another's.
    `environments`, where it was asked for: all that samplers need to go on after the last row, by
    name; first axis N.
    `elsewhere`: environment steps of this fragment that other trainers have.
    `raw_sps`: environment steps per second while the environments were stepped, over all samplers.
    `env_ranges` are the run's environments [first, last) whose columns stand side by side. One
    environment can be there twice: then the columns further right are of later steps.
    """

    obs: np.ndarray
    action: np.ndarray
    behaviour_log_prob: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray
    history: np.ndarray | None = None
    action_mask: np.ndarray | None = None
    state: np.ndarray | None = None
    policy_version: float = -1
    replayed: int = 0
    carried: int = 0
    reset: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    episodes: list[Episode] = field(default_factory=list)
    environments: dict[str, np.ndarray] | None = None
    env_ranges: list[tuple[int, int]] = field(default_factory=list)
    elsewhere: int = 0
    raw_sps: float = 0.0

    @classmethod
    def empty(cls, spec: RolloutSpec, envs: int) -> Rollout:
        shapes = spec.arrays(envs)
        return cls.of({name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()})

    @classmethod
    def blank(cls, spec: RolloutSpec, first: int, last: int) -> Rollout:
        """Zeros of the environments [first, last) after a reset: all rows valid, all actions legal."""
        rollout = cls.empty(spec, last - first)
        rollout.valid[:] = True
        if rollout.action_mask is not None:
            rollout.action_mask[:] = True
        rollout.env_ranges = [(first, last)]
        rollout.reset = np.ones(last - first, bool)
        return rollout

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Rollout:
        """A rollout of existing arrays, which are taken over as they are."""
        return cls(**cast(dict[str, Any], arrays))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name; those that a rollout can be without, only where there is one."""
        names = (
            "obs", "action", "behaviour_log_prob", "reward", "terminated", "truncated", "valid",
            "history", "action_mask", "state",
        )  # fmt: skip
        return {name: array for name in names if (array := getattr(self, name)) is not None}

    def columns(self, first: int, last: int) -> Rollout:
        """The environments [first, last) as views: what is written there is written here."""
        return Rollout.of({name: array[:, first:last] for name, array in self.arrays().items()})

    @property
    def new_columns(self) -> slice:
        """The environments' columns but for replayed ones."""
        return slice(self.reward.shape[1] - self.replayed)

    @property
    def steps(self) -> int:
        """Environment steps taken for it: the new rows whose action was not ignored."""
        again = self.valid[: self.carried]
        if self.carried:
            again = again[:, ~self.reset]
        return int(self.valid.sum() - again.sum()) + self.elsewhere


def spread(envs: int, samplers: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Ranges [first, last) of environments, one per sampler, sizes as equal as can be.

    Args:
        multiple: of which every size is one; it divides `envs`.
    """
    edges = [multiple * round(envs / multiple * i / samplers) for i in range(samplers + 1)]
    return list(pairwise(edges))
