"""Where a run's settings come from: presets, a file, the command line.

Precedence: dataclass default < preset of the env's family < preset of the env < `--preset NAME`
< `--config FILE` < flags. Every field of `Config` is a flag of its own name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common.sources import ROOT
from envs import family_of
from settings.config import FIELDS, MAY_CHANGE_ON_RESUME, Config, ConfigError
from settings.rules import validate


def parse(arguments: Sequence[str], program: str = "train.py") -> Config:
    """Build the configuration that a command line asks for.

    Args:
        arguments: the flags, without the program's name.

    Raises:
        ConfigError, UnknownEnv: for a value that breaks a rule.
        SystemExit: 2 for a flag that does not exist or does not parse; 0 after --help.
    """
    import tyro

    resume = _value_of("--resume", arguments)
    if resume is not None:
        base = load_run(Path(resume))
    else:
        path = _value_of("--config", arguments)
        settings = {} if path is None else _read_settings(Path(path))
        env = _value_of("--env", arguments) or settings.get("env", Config.env)
        recipe = _value_of("--preset", arguments) or settings.get("preset")
        base = dataclasses.replace(preset(env, recipe), **settings)
    config = tyro.cli(
        Config,
        prog=program,
        description="Train an agent with distributed PPO.",
        args=list(arguments),
        default=base,
    )
    if resume is not None:
        _refuse_contradictions(base, config)
        config.run_dir = resume
    validate(config)
    return config


def preset(env: str, recipe: str | None = None) -> Config:
    """The defaults for an env: those of its family, then its own (`presets/<family>.yaml`).

    Args:
        recipe: one of `presets/recipes/`, over them.

    Raises:
        ConfigError: where there is no such recipe, or it says nothing of this family.
    """
    family = family_of(env)
    settings: dict[str, Any] = {"env": env}
    path = ROOT / "presets" / f"{family}.yaml"
    if path.exists():
        content = yaml.safe_load(path.read_text())
        settings |= content["family"]
        settings |= content.get("tasks", {}).get(env.rpartition("/")[2], {})
    if recipe is not None:
        settings |= {"preset": recipe} | _read_recipe(recipe, env, family)
    return Config(**settings)


def recipes() -> list[str]:
    """The names that `--preset` takes."""
    return sorted(path.stem for path in (ROOT / "presets" / "recipes").glob("*.yaml"))


def _read_recipe(name: str, env: str, family: str) -> dict[str, Any]:
    if name not in recipes():
        raise ConfigError(f"preset {name!r} does not exist: give one of {', '.join(recipes())}")
    content = yaml.safe_load((ROOT / "presets" / "recipes" / f"{name}.yaml").read_text())
    if "any" in content:
        return content["any"]
    if family not in content:
        raise ConfigError(
            f"preset {name} is for {' and '.join(content)}, but env {env} is {family}: leave it out,"
            f" or give another --env"
        )
    return content[family]


def load_run(folder: Path) -> Config:
    """The configuration that a run was started with."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not the folder of a run (it has no config.yaml): give one that train.py"
            f" wrote, such as runs/CartPole-v1__s1__20260101-120000"
        )
    return Config(**_read_settings(path))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {error}") from None
    settings = content.get("config", content) if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings: write one `name: value` a line")
    unknown = sorted(set(settings) - FIELDS)
    if unknown:
        raise ConfigError(f"{path} sets {', '.join(unknown)}: no such setting, see --help")
    return settings


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag that decides which defaults the others have."""
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            return value if equals else (arguments[at + 1] if at + 1 < len(arguments) else None)
    return None


def _refuse_contradictions(saved: Config, asked: Config) -> None:
    for name in sorted(FIELDS - MAY_CHANGE_ON_RESUME):
        before, now = getattr(saved, name), getattr(asked, name)
        if before != now and not (name == "run_dir" and now == asked.resume):
            raise ConfigError(
                f"--{name} {now} contradicts the run in {asked.resume}, which has {name} {before}:"
                f" leave the flag out, or start a new run"
            )
