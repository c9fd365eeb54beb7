"""The last observations of an episode as one, for networks that look back over time."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorWrapper
from gymnasium.vector.utils import batch_space

from envs.convention import Environments, UnsupportedEnv


class Memory(Environments, VectorWrapper):
    """Observations [N, steps, D + 1]: the last ones, oldest first, and a 1 beside each.

    The places of observations from before the episode are all 0, the 1 included. A rollout stores
    each observation once, as it does with stacks of frames (`Rollout.observations`).

    Args:
        env: environments whose observations are vectors.
        steps: number of observations to keep.
    """

    def __init__(self, env: Environments, steps: int):
        VectorWrapper.__init__(self, env)
        self._envs = env
        inner = env.single_observation_space
        if not isinstance(inner, spaces.Box) or len(inner.shape) != 1:
            raise UnsupportedEnv(
                f"a network that looks back needs observations that are vectors, not {inner}"
            )
        if env.action_mask is not None or env.privileged:
            raise UnsupportedEnv(
                "a network that looks back takes no action mask and no part for the critic alone:"
                " give --network mlp, or lstm"
            )
        self.frame_stack = steps
        self.episode_limit, self.saves_state = env.episode_limit, env.saves_state
        self.has_extras = env.has_extras
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

    def extras(self, env: int) -> dict[str, float] | None:
        return self._envs.extras(env)

    def picture(self) -> np.ndarray:
        return self._envs.picture()

    def get_state(self) -> dict[str, np.ndarray]:
        own = {"window": self._window.copy(), "window_ended": self._ended.copy()}
        return self._envs.get_state() | own

    def set_state(self, arrays: dict[str, np.ndarray]) -> None:
        self._envs.set_state(arrays)
        self._window, self._ended = arrays["window"].copy(), arrays["window_ended"].copy()
