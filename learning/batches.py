"""A rollout's rows as minibatches, in random order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithm import Minibatch
from model import Past
from rollout import Rollout
from settings.config import Config


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the learner's device; to a GPU it is copied while the CPU goes on."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    # torch gives pinned memory to the next copy once this one is over
    return tensor.pin_memory().to(device, non_blocking=True)


class Batches:
    """Those rows of a rollout that an update learns from, on the learner's device.

    A recurrent network learns from whole sequences: a minibatch is all rows of some environments.

    Args:
        config: the sizes.
        rollout: [T, N].
        obs: `rollout.observations()` on the device.

    Attributes:
        obs: [B, ...], all rows.
        weight: [B], 1 for valid rows.
        past: of all T + 1 rows, where the network is recurrent.
    """

    def __init__(self, config: Config, rollout: Rollout, obs: Tensor):
        self.config, self.device = config, obs.device
        self.steps, self.envs = config.steps_per_rollout, rollout.reward.shape[1]
        self._fields = {
            "obs": obs[: self.steps],
            "action": self._on_device(rollout.action),
            "behaviour_log_prob": self._on_device(rollout.behaviour_log_prob),
            "weight": self._on_device(rollout.valid).float(),
        }
        if rollout.action_mask is not None:
            self._fields["action_mask"] = self._on_device(rollout.action_mask)
        self.past = None
        if rollout.state is not None:
            begins = np.zeros((len(rollout.obs), self.envs), bool)
            begins[1:] = ~rollout.valid  # the row after a reset row is an episode's first
            self._begins = to_device(begins, self.device)
            self._state = to_device(rollout.state[0], self.device)
            self.past = Past(self._state, self._begins.flatten())

    def _on_device(self, array: np.ndarray) -> Tensor:
        return to_device(array[: self.steps], self.device)

    @property
    def obs(self) -> Tensor:
        return self._fields["obs"].flatten(0, 1)

    @property
    def weight(self) -> Tensor:
        return self._fields["weight"].flatten()

    def put(self, fields: Mapping[str, np.ndarray]) -> None:
        """Add or replace fields of `Minibatch` [T, N, ...]."""
        self._fields |= {name: self._on_device(array) for name, array in fields.items()}

    def epoch(self, generator: np.random.Generator) -> Iterator[Minibatch]:
        """Every row once, in the generator's order."""
        if self.past is not None:
            yield from self._sequences(generator)
            return
        order = to_device(generator.permutation(self.steps * self.envs), self.device)
        size = self.config.minibatch_size
        shuffled = [f.flatten(0, 1).index_select(0, order) for f in self._fields.values()]
        for rows in zip(*[field.split(size) for field in shuffled], strict=True):
            fields: dict[str, Any] = dict(zip(self._fields, rows, strict=True))
            yield Minibatch(**fields)

    def _sequences(self, generator: np.random.Generator) -> Iterator[Minibatch]:
        order = to_device(generator.permutation(self.envs), self.device)
        size = self.config.minibatch_size // self.steps
        for at in range(0, self.envs, size):
            chosen = order[at : at + size]
            fields: dict[str, Any] = {
                name: f[:, chosen].flatten(0, 1) for name, f in self._fields.items()
            }
            begins = self._begins[: self.steps, chosen].flatten()
            yield Minibatch(**fields, past=Past(self._state[chosen], begins))
