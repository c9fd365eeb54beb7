"""Any other registered gymnasium id, and classes of the user's own, as `module:EnvClass`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

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
    module_name, _, class_name = env.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise  # the user's module was found; something that it imports is missing
        raise UnknownEnv(
            f"env {env!r}: there is no module {module_name!r} here or on PYTHONPATH: name a file"
            f" of this folder without its .py"
        ) from None
    except AttributeError:
        raise UnknownEnv(f"env {env!r}: {module_name} has no {class_name!r}") from None
    if not (inspect.isclass(found) and issubclass(found, gymnasium.Env)):
        raise UnsupportedEnv(f"env {env!r} is {found!r}, which is not a subclass of gymnasium.Env")
    return lambda: found(**options)
