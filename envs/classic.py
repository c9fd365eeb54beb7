"""Classic control and Box2D: gymnasium's own environments, stepped in one process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from envs import UnsupportedEnv


def make(env: str, num_envs: int) -> VectorEnv:
    return vectorize(env, lambda: quiet_make(env), num_envs)


def quiet_make(env: str, **options: Any) -> gymnasium.Env:
    """`gymnasium.make` without its checker (a cost per step) and without deprecation notices."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make(env, disable_env_checker=True, **options)


class WithoutInfos(SyncVectorEnv):
    """Merging infos, key by key for each environment and step, costs much; nobody reads them."""

    def _add_info(self, vector_infos: dict[str, Any], env_info: Any, env_num: int) -> dict:
        return vector_infos

    @property
    def action_mask(self) -> np.ndarray:
        """[N, A] bool; an AttributeError where the environment says nothing of legal actions."""
        if not self._parts:
            raise AttributeError("action_mask")
        return np.stack([env.action_mask for env in self._parts])

    @property
    def privileged(self) -> int:
        return self._parts[0].privileged if self._parts else 0

    @cached_property
    def _parts(self) -> list[Parts]:
        if not all(isinstance(env, Parts) for env in self.envs):
            return []
        return cast("list[Parts]", list(self.envs))


class Parts(gymnasium.ObservationWrapper):
    """An observation in parts, as one vector: what the policy sees, and then the critic's own.

    Args:
        env: with a `Dict` observation. Its part `action_mask`, if there is one, says which actions
            are legal; it is no observation.
        critic_obs: the part that only the critic sees; all others are the policy's.
    """

    def __init__(self, env: gymnasium.Env, critic_obs: str):
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        parts = dict(env.observation_space.spaces)
        mask = parts.pop("action_mask", None)
        own = parts.pop(critic_obs, None)
        self._policy, self._critic = spaces.Dict(parts), own
        self.privileged = 0 if own is None else spaces.flatdim(own)
        size = spaces.flatdim(self._policy) + self.privileged
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._key = critic_obs
        if mask is not None:
            self.action_mask = np.ones(int(np.prod(mask.shape or ())), bool)

    def observation(self, observation: Any) -> np.ndarray:
        if hasattr(self, "action_mask"):
            self.action_mask = np.asarray(observation["action_mask"]).astype(bool).ravel()
        seen = {name: observation[name] for name in self._policy.spaces}
        parts = [np.asarray(spaces.flatten(self._policy, seen))]
        if self._critic is not None:
            parts.append(np.asarray(spaces.flatten(self._critic, observation[self._key])))
        return np.concatenate(parts).astype(np.float32)


def vectorize(
    name: str,
    make_one: Callable[[], gymnasium.Env],
    num_envs: int,
    critic_obs: str = "critic",
) -> VectorEnv:
    """Step `num_envs` scalar environments as one, with spaces that a policy can be built for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WithoutInfos(
            [lambda: plain_spaces(name, make_one(), critic_obs)] * num_envs,
            copy=False,
            autoreset_mode=AutoresetMode.NEXT_STEP,
        )


def plain_spaces(name: str, env: gymnasium.Env, critic_obs: str = "critic") -> gymnasium.Env:
    """Bring an environment's spaces to what the policies take.

    Observations: a vector of floats, or an image [channels, height, width] of uint8. Anything else
    is flattened (one-hot for discrete ones); of a `Dict` one part may be the critic's alone and one
    the action mask (see `Parts`). Actions: `Discrete` from 0, `MultiDiscrete`, or a vector `Box`.

    Raises:
        UnsupportedEnv: for any other action space.
    """
    action, observation = env.action_space, env.observation_space
    if (isinstance(action, spaces.Box) and len(action.shape) == 1) or (
        isinstance(action, spaces.MultiDiscrete) and action.nvec.ndim == 1 and not any(action.start)
    ):
        pass
    elif isinstance(action, spaces.Discrete):
        if action.start != 0:
            start, n = int(action.start), int(action.n)
            env = wrappers.TransformAction(env, lambda a: a + start, spaces.Discrete(n))
    else:
        raise UnsupportedEnv(
            f"env {name} has actions {action}: a policy needs a Discrete or MultiDiscrete space, or"
            f" a Box, with one axis; wrap the environment to offer one and name it module:EnvClass"
        )
    if isinstance(observation, spaces.Dict):
        return Parts(env, critic_obs)
    if isinstance(observation, spaces.Box):
        shape = observation.shape
        if len(shape) == 3 and observation.dtype == np.uint8:
            if shape[2] in (1, 3, 4):  # channels last
                image = spaces.Box(0, 255, (shape[2], *shape[:2]), np.uint8)
                env = wrappers.TransformObservation(
                    env, lambda o: np.ascontiguousarray(o.transpose(2, 0, 1)), image
                )
            return env
        if len(shape) == 1:
            return env
    return wrappers.FlattenObservation(env)
