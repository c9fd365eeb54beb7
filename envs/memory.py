"""The last observations of an episode as one, for networks that look back over time."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from envs import UnsupportedEnv


class Memory(VectorWrapper):
    """Observations [N, steps, D + 1]: the last ones, oldest first, and a 1 beside each.

    Where an episode is younger than that, what is missing is all 0, the 1 included. It is stored
    and sent as a stack of frames is: each observation once (`Rollout.observations`).

    Args:
        env: whose observations are vectors.
        steps: how many to keep.
    """

    def __init__(self, env: VectorEnv, steps: int):
        super().__init__(env)
        inner = env.single_observation_space
        if not isinstance(inner, spaces.Box) or len(inner.shape) != 1:
            raise UnsupportedEnv(
                f"a network that looks back needs observations that are vectors, not {inner}"
            )
        if getattr(env, "action_mask", None) is not None or getattr(env, "privileged", 0):
            raise UnsupportedEnv(
                "a network that looks back takes no action mask and no part for the critic alone:"
                " give --network mlp, or lstm"
            )
        self.frame_stack = steps
        size = inner.shape[0]
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (steps, size + 1), np.float32)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._window = np.zeros((env.num_envs, steps, size + 1), np.float32)
        self._ended = np.zeros(env.num_envs, bool)

    def _push(self, obs: np.ndarray) -> np.ndarray:
        self._window = np.roll(self._window, -1, 1)  # a new array: the old one may be in use
        self._window[:, -1, :-1] = obs
        self._window[:, -1, -1] = 1.0
        return self._window

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        obs, infos = self.env.reset(seed=seed, options=options)
        self._window[:] = 0.0
        self._ended[:] = False
        return self._push(obs), infos

    def step(self, actions: Any) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        obs, reward, terminated, truncated, infos = self.env.step(actions)
        self._window[self._ended] = 0.0  # this observation is the first after a reset
        self._ended = terminated | truncated
        return self._push(obs), reward, terminated, truncated, infos
