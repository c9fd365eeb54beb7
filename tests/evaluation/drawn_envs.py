"""Small environments that can be drawn: the image's first pixel counts the episode's steps."""

from __future__ import annotations

import os
import signal
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from tests.toy_envs import ConstantReward, Hidden, Masked


def image_of(step: int) -> np.ndarray:
    return np.full((16, 32, 3), step, np.uint8)


class DrawnMasked(Masked):
    """Raises for an illegal action; an episode has 7 steps."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        return image_of(self.t)


class Secret(Hidden):
    """The critic's part is called secret; an episode has 10 steps."""

    observation_space = spaces.Dict(
        {"policy": spaces.Box(-1, 1, (1,), np.float32), "secret": spaces.Discrete(2)}
    )

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def _look(self) -> Any:
        return {"policy": np.full(1, self.t / 10, np.float32), "secret": self.coin}

    def render(self) -> Any:
        return image_of(self.t)


class DrawsText(ConstantReward):
    """Can be drawn, but not as an image."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        return "a picture"


class Noisy(ConstantReward):
    """An image of noise each step, which takes many bytes; an episode has 2,000 steps."""

    limit = 2000

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        return self.np_random.integers(256, size=(128, 128, 3), dtype=np.uint8)


class WithoutItsServer(ConstantReward):
    """Can be drawn, but makes no step."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        return image_of(self.t)

    def step(self, action: Any) -> Any:
        raise OSError("the game server is gone")


class EndsItsProcess(DrawsText):
    """The second picture kills the process that draws it, as a driver may."""

    def render(self) -> Any:
        if self.t == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return image_of(self.t)


class Odd(DrawsText):
    """Its pictures have odd sides, which no encoder takes."""

    def render(self) -> Any:
        return np.full((101, 151, 3), self.t, np.uint8)


class Floats(DrawsText):
    def render(self) -> Any:
        return np.zeros((32, 32, 3), np.float32)


class Grows(DrawsText):
    def render(self) -> Any:
        return np.zeros((32 + 2 * self.t, 32, 3), np.uint8)


class Slowly(Secret):
    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": np.int64(4)}
