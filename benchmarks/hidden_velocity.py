"""CartPole whose policy sees positions only: the velocities are the critic's, or nobody's."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

POSITIONS = [0, 2]  # of the cart, and of the pole
VELOCITIES = [1, 3]


class Unseen(gymnasium.Wrapper):
    """Nobody sees velocities."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True))
        parts = self._parts(np.zeros(4, np.float32))
        self.observation_space = spaces.Dict(
            {name: spaces.Box(-np.inf, np.inf, part.shape) for name, part in parts.items()}
        )

    def _parts(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        return {"positions": obs[POSITIONS]}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._parts(obs), info

    def step(self, action: Any) -> Any:
        obs, *rest = self.env.step(action)
        return self._parts(obs), *rest


class SeenByCritic(Unseen):
    """The critic sees velocities."""

    def _parts(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        return {"positions": obs[POSITIONS], "critic": obs[VELOCITIES]}
