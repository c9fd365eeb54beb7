"""Small environments whose right answers are known."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class ConstantReward(gymnasium.Env):
    """Reward 1 for ever, cut off after 10 steps: with gamma 0.99 every state is worth 100."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    limit = 10
    step_s = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> Any:
        if self.step_s:
            time.sleep(self.step_s)
        self.t += 1
        return np.ones(1, np.float32), 1.0, False, self.t >= self.limit, {}


class Slow(ConstantReward):
    """A step takes 50 ms."""

    step_s = 0.05


def _instances_before(folder: Path) -> int:
    """How many times this was called with the folder before, in any process."""
    for number in itertools.count():
        try:
            (folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError


class Uneven(ConstantReward):
    """A step takes 10 ms, and 40 ms in the second instance (the first is asked for its spaces)."""

    def __init__(self) -> None:
        number = _instances_before(Path(os.environ["UNEVEN_FOLDER"]))
        self.step_s = 0.04 if number == 1 else 0.01


class Counter(gymnasium.Env):
    """Observes (seed drawn at reset, step), ends after 3 steps or is cut off after 5 at random."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.number = self.np_random.integers(1000)
        self.t, self.ends = 0, bool(self.np_random.integers(2))
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        over = self.t >= (3 if self.ends else 5)
        return self._obs(), float(action[0]), over and self.ends, over and not self.ends, {}

    def _obs(self) -> np.ndarray:
        return np.array([self.number, self.t], np.float64)


class NotANumberReward(ConstantReward):
    """The 25th reward after the start is NaN."""

    limit = 100

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, float("nan") if self.t == 25 else reward, terminated, truncated, info


class NotANumberObservation(ConstantReward):
    """The 25th observation after the start is NaN."""

    limit = 100

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return (obs * np.nan if self.t == 25 else obs, *rest)


class TwoHeads(ConstantReward):
    """An action space that no policy here offers."""

    action_space = spaces.MultiDiscrete([2, 3])  # pyright: ignore
