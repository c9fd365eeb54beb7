"""Environments under one convention (see `envs.convention`), and the registry of their families."""

from __future__ import annotations

import difflib
import importlib
import traceback
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.envs.registration import find_highest_version, get_env_id, parse_env_id

from common.errors import UserError
from envs.atari import AtariOptions
from envs.convention import (
    BadEnvironment,
    Environments,
    Family,
    NotFiniteNumber,
    Spaces,
    UnknownEnv,
    UnsupportedEnv,
    WrongOption,
    spaces_of_vec_env,
)
from envs.custom import CustomOptions
from envs.microrts.options import MicrortsOptions

__all__ = [
    "FAMILIES",
    "BadEnvironment",
    "Environments",
    "Family",
    "FamilyOptions",
    "NotFiniteNumber",
    "Spaces",
    "UnknownEnv",
    "UnsupportedEnv",
    "WrongOption",
    "family",
    "family_of",
    "known_ids",
    "make_vec_env",
    "spaces_of",
    "spaces_of_vec_env",
]

FAMILIES = {  # the first that owns an id makes it; `presets/` has a file for each but the last
    "atari": "envs.atari",
    "microrts": "envs.microrts",
    "mujoco": "envs.mujoco",
    "classic": "envs.classic",
    "box2d": "envs.box2d",
    "custom": "envs.custom",
}


@dataclass
class FamilyOptions(CustomOptions, MicrortsOptions, AtariOptions):
    """The settings of all families that have some."""


def family_of(env: str) -> str:
    """The name of the family of an environment id, one of `FAMILIES`.

    Raises:
        UnknownEnv: for an id that no family owns.
    """
    for name in FAMILIES:
        if _load(name).owns(env):
            return name
    ids = known_ids()
    alike = difflib.get_close_matches(env, ids, n=3, cutoff=0.5)
    near = alike or [id for id in ids if env and env.lower() in id.lower()][:3]
    hint = (
        f"did you mean {' or '.join(near)}? " if near else "see `gymnasium.registry` for the ids. "
    )
    raise UnknownEnv(f"env {env!r} is not a registered environment: {hint}A class of your own is"
                     f" --env module:EnvClass")  # fmt: skip


def known_ids() -> list[str]:
    """The ids of gymnasium's registry, and those that only the families here know.

    Atari games are among them by the ids of their family alone, which has the presets.
    """
    registered = [
        id for id, spec in gymnasium.registry.items() if "ale_py" not in str(spec.entry_point)
    ]
    return [*registered, *(id for name in FAMILIES for id in _load(name).ids())]


def family(env: str) -> Family:
    """The family of an environment id.

    Raises:
        UnknownEnv: for an id that no family owns.
    """
    return _load(family_of(env))


def _load(name: str) -> Family:
    return importlib.import_module(FAMILIES[name]).FAMILY


def make_vec_env(
    env: str, num_envs: int, memory: int = 0, *, filmed: bool = False, **options: Any
) -> Environments:
    """`num_envs` environments behind one vector interface, in the convention.

    Args:
        memory: observations to look back over, for networks over time; 0: none.
        filmed: make them so that `picture` works (see `Family.prepare_film`).
        options: the family's own (see `Family.options`).

    Raises:
        UnknownEnv, UnsupportedEnv: with the remedy.
    """
    venv = family(env).make(env, num_envs, filmed=filmed, **options)
    if not memory:
        return venv
    from envs.memory import Memory

    return Memory(venv, memory)


def spaces_of(env: str, *, resets: bool = False, **options: Any) -> Spaces:
    """Make one environment and look at its spaces.

    Args:
        resets: reset a class of the user's own too: of samplers, each one would fail time and again.
        options: the family's own.

    Raises:
        UnknownEnv, UnsupportedEnv, BadEnvironment: with the remedy.
    """
    try:
        venv = make_vec_env(env, 1, **options)
    except (gymnasium.error.Error, ImportError) as error:
        reason = str(error).removesuffix(".")
        raise BadEnvironment(f"env {env} cannot be made: {reason}{_remedy(env, error)}") from None
    except Exception as error:  # a class of the user's own may raise anything
        if isinstance(error, UserError) or ":" not in env:
            raise
        raise _fails(env, "cannot be made without arguments", error) from error
    try:
        if resets and ":" in env:
            _reset(env, venv)
        return spaces_of_vec_env(venv)
    finally:
        venv.close()


def _reset(env: str, venv: Environments) -> None:
    try:
        venv.reset(seed=[0])
    except UserError:
        raise
    except Exception as error:  # a class of the user's own may raise anything
        wanted = "cannot be reset by reset(seed=..., options=...) to (observation, info)"
        raise _fails(env, wanted, error) from error


def _fails(env: str, what: str, error: Exception) -> BadEnvironment:
    """Says what went wrong, and where in the innermost code."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return BadEnvironment(
        f"env {env} {what}: {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
    )


def _remedy(env: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return ": install it; `make venv` installs the packages that this project needs"
    if env in gymnasium.registry:
        space, name, version = parse_env_id(env)
        newest = find_highest_version(space, name)
        if version != newest:
            return f": give --env {get_env_id(space, name, newest)}"
    return ""
