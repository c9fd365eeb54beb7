"""Classic control and Box2D: gymnasium's own environments, stepped in one process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

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


def vectorize(name: str, make_one: Callable[[], gymnasium.Env], num_envs: int) -> VectorEnv:
    """Step `num_envs` scalar environments as one, with spaces that a policy can be built for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return WithoutInfos(
            [lambda: plain_spaces(name, make_one())] * num_envs,
            copy=False,
            autoreset_mode=AutoresetMode.NEXT_STEP,
        )


def plain_spaces(name: str, env: gymnasium.Env) -> gymnasium.Env:
    """Bring an environment's spaces to what the policies take.

    Observations: a vector of floats, or an image [channels, height, width] of uint8. Anything else
    is flattened (one-hot for discrete ones). Actions: `Discrete` from 0, or a vector `Box`.

    Raises:
        UnsupportedEnv: for any other action space.
    """
    action, observation = env.action_space, env.observation_space
    if isinstance(action, spaces.Box) and len(action.shape) == 1:
        pass
    elif isinstance(action, spaces.Discrete):
        if action.start != 0:
            start, n = int(action.start), int(action.n)
            env = wrappers.TransformAction(env, lambda a: a + start, spaces.Discrete(n))
    else:
        raise UnsupportedEnv(
            f"env {name} has actions {action}: a policy needs a Discrete space or a Box with one"
            f" axis; wrap the environment to offer one and name it module:EnvClass"
        )
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
