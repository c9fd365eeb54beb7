"""Environments under one convention.

Every family's module offers `make(env, num_envs) -> gymnasium.vector.VectorEnv` with NEXT_STEP
autoreset: after an episode's end the next observation is the episode's true final one, the action
given to it is ignored, and `terminated` is kept apart from `truncated`. To add a family, write one
module here, name it in `_MODULES` and teach `family_of` its ids.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any, NamedTuple

import gymnasium
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from common.errors import UserError

_MODULES = {
    "atari": "envs.atari",
    "mujoco": "envs.mujoco",
    "classic": "envs.classic",
    "box2d": "envs.classic",
    "microrts": "envs.microrts.vector",
    "custom": "envs.custom",
}


class UnknownEnv(UserError):
    """No such environment. The message has the nearest names."""


class UnsupportedEnv(UserError):
    """An environment whose spaces this project cannot train on."""


class BadEnvironment(UserError):
    """An environment that cannot be made, or that gives what no policy can learn from."""


class Spaces(NamedTuple):
    """An environment's spaces, and the number of frames that an observation stacks (or 0).

    `masks`: the environment says which actions are legal, by its `action_mask` [N, A] bool.
    `privileged`: how many of an observation's entries, the last, are for the critic alone.
    `action_structure`: where actions are those of units on a grid, the name of their structure in
    `distributions.make.STRUCTURES` and the number of cells.
    """

    observation: spaces.Box
    action: spaces.Space
    frame_stack: int
    masks: bool = False
    privileged: int = 0
    action_structure: tuple[str, int] | None = None


def family_of(env: str) -> str:
    """The family of an environment id: atari, mujoco, classic, box2d, microrts or custom.

    Raises:
        UnknownEnv: for an id that nothing is registered under.
    """
    from envs.atari import rom_of, supported_ids
    from envs.microrts.game import size_of

    if rom_of(env) is not None:
        return "atari"
    if size_of(env) is not None:
        return "microrts"
    spec = gymnasium.registry.get(env)
    if spec is not None:
        entry_point = str(spec.entry_point)
        for family, package in (
            ("mujoco", "gymnasium.envs.mujoco."),
            ("classic", "gymnasium.envs.classic_control."),
            ("box2d", "gymnasium.envs.box2d"),
        ):
            if entry_point.startswith(package):
                return family
        return "custom"
    if ":" in env:
        return "custom"
    near = difflib.get_close_matches(env, [*gymnasium.registry, *supported_ids()], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `gymnasium.registry` for the ids"
    raise UnknownEnv(f"env {env!r} is not a registered environment: {hint} A class of your own is"
                     f" --env module:EnvClass")  # fmt: skip


def make_vec_env(env: str, num_envs: int, memory: int = 0, **options: Any) -> VectorEnv:
    """`num_envs` environments behind one vector interface, in the convention above.

    Args:
        memory: observations to look back over, for networks over time; 0: none.
        options: what the family's `make` takes beside (see `Config.env_options`).

    Raises:
        UnknownEnv, UnsupportedEnv: with the remedy.
    """
    venv = importlib.import_module(_MODULES[family_of(env)]).make(env, num_envs, **options)
    if not memory:
        return venv
    from envs.memory import Memory

    return Memory(venv, memory)


def spaces_of(env: str, **options: Any) -> Spaces:
    """Make one environment and look.

    Raises:
        UnknownEnv, UnsupportedEnv, BadEnvironment: with the remedy.
    """
    try:
        venv = make_vec_env(env, 1, **options)
    except (gymnasium.error.Error, ImportError) as error:
        raise BadEnvironment(f"env {env} cannot be made: {error}") from None
    try:
        return spaces_of_vec_env(venv)
    finally:
        venv.close()


def spaces_of_vec_env(venv: VectorEnv) -> Spaces:
    observation = venv.single_observation_space
    assert isinstance(observation, spaces.Box)  # what every family's `make` sees to
    return Spaces(
        observation, venv.single_action_space, getattr(venv, "frame_stack", 0),
        hasattr(venv, "action_mask"), getattr(venv, "privileged", 0),
        getattr(venv, "action_structure", None),
    )  # fmt: skip
