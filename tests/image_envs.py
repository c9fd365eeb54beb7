"""Small environments whose observations are images, or are taken for some."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from tests.toy_envs import ConstantReward


class _Images(ConstantReward):
    """Images whose channel c is c + 1 (c, if binary) in the upper left quarter, and 0 elsewhere."""

    shape = (5, 20, 24)  # channels, height, width
    last = False
    binary = False

    def __init__(self) -> None:
        shape = (*self.shape[1:], self.shape[0]) if self.last else self.shape
        self.observation_space = spaces.Box(0, 1 if self.binary else 255, shape, np.uint8)
        image = np.zeros(self.shape, np.uint8)
        for c, channel in enumerate(image):
            channel[: self.shape[1] // 2, : self.shape[2] // 2] = c if self.binary else c + 1
        self.image = image.transpose(1, 2, 0) if self.last else image

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.image, {}

    def step(self, action: Any) -> Any:
        return (self.image, *super().step(action)[1:])


class BinaryFirst(_Images):
    shape, binary = (2, 12, 12), True


class BinaryLast(_Images):
    shape, binary, last = (2, 12, 12), True, True


class ManyChannels(_Images):
    last = True


class AnyChannels(_Images):
    shape, last = (8, 8, 8), True


class SaysChannels(AnyChannels):
    metadata = {"channels": "last"}  # noqa: RUF012 - as gymnasium declares it


class Bytes(ConstantReward):
    """A vector of bytes, which is no image."""

    observation_space = spaces.Box(0, 255, (6,), np.uint8)

    def _bytes(self) -> np.ndarray:
        return np.full(6, 40 * self.t % 256, np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed, options=options)
        return self._bytes(), {}

    def step(self, action: Any) -> Any:
        _, *rest = super().step(action)
        return (self._bytes(), *rest)
