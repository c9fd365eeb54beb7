"""Any other registered gymnasium id, and classes of the user's own, as `module:EnvClass`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from common.user_class import find
from envs import UnknownEnv, UnsupportedEnv
from envs.classic import quiet_make, vectorize


def make(env: str, num_envs: int, critic_obs: str = "critic") -> VectorEnv:
    return vectorize(env, maker(env), num_envs, critic_obs)


def maker(env: str, **options: Any) -> Callable[[], gymnasium.Env]:
    """A function that makes one environment of this name.

    Raises:
        UnknownEnv: where the module or the class cannot be found.
        UnsupportedEnv: where it is no gymnasium.Env.
    """
    if env in gymnasium.registry:
        return lambda: quiet_make(env, **options)
    found = find("env", env, UnknownEnv)
    if not (inspect.isclass(found) and issubclass(found, gymnasium.Env)):
        raise UnsupportedEnv(f"env {env!r} is {found!r}, which is not a subclass of gymnasium.Env")
    return lambda: found(**options)
