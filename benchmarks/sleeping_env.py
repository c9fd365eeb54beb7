"""Simulated environments whose steps take time but no processor."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

STEP_S = 0.02


class Sleeping(gymnasium.Env):
    """A step sleeps for 20 ms; an episode has 100."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    step_s = STEP_S

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.ones(4, np.float32), {}

    def step(self, action: Any) -> Any:
        time.sleep(self.step_s)
        self.t += 1
        return np.ones(4, np.float32), 1.0, False, self.t >= 100, {}


class Slow(Sleeping):
    """As `Sleeping`, but 80 ms a step."""

    step_s = 4 * STEP_S


class Uneven(Sleeping):
    """As `Sleeping`, but in the one process that can create the file SLOW_SAMPLER, 80 ms a step."""

    def __init__(self) -> None:
        try:
            Path(os.environ["SLOW_SAMPLER"]).touch(exist_ok=False)
            self.step_s = Slow.step_s
        except FileExistsError:
            self.step_s = STEP_S


class Straggling(Sleeping):
    """As `Sleeping`, but 80 ms a step from the reset on at which SLOW_SAMPLER holds this process."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        slow = Path(os.environ["SLOW_SAMPLER"])
        is_slow = slow.exists() and slow.read_text() == str(os.getpid())
        self.step_s = Slow.step_s if is_slow else STEP_S
        return super().reset(seed=seed)
