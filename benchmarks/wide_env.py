"""Environments that cost nothing but the bytes of their observations, and a network that looks at few.

The bytes that each class names are those of a fragment of 8 steps.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from torch import Tensor, nn

SEEN = 8  # bytes of an observation that the network looks at


class Kilobyte(gymnasium.Env):
    """A byte image that never changes. With one environment, 1 KB."""

    shape = (1, 4, 24)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, self.shape, np.uint8)
        self._image = np.random.default_rng(0).integers(0, 256, self.shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._image, {}

    def step(self, action: Any) -> Any:
        return self._image, 1.0, False, False, {}


class Hundred(Kilobyte):
    """As `Kilobyte`. With 16 environments, 100 KB."""

    shape = (1, 20, 35)


class Megabytes(Kilobyte):
    """As `Kilobyte`. With 16 environments, 7 MB."""

    shape = (1, 200, 250)


class Glance(nn.Module):
    """Images [B, C, H, W] to features [B, SEEN]: a few of their bytes."""

    def __init__(self, obs_shape: tuple[int, ...]):
        super().__init__()
        self.layer = nn.Linear(SEEN, SEEN)

    def forward(self, obs: Tensor) -> Tensor:
        return self.layer(obs[:, 0, 0, :SEEN])
