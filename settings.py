"""Where a run's settings come from: presets, a file, the command line.

Precedence: dataclass default < preset of the env's family < preset of the env < `--config FILE`
< flags. Every field of `Config` is a flag of its own name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from config import FIELDS, MAY_CHANGE_ON_RESUME, Config, ConfigError
from envs import family_of
from validation import validate

ROOT = Path(__file__).resolve().parent


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
        env = _value_of("--env", arguments) or Config.env
        base = preset(env)
        settings = _value_of("--config", arguments)
        if settings is not None:
            base = dataclasses.replace(base, **_read_settings(Path(settings)))
            if base.env != env and _value_of("--env", arguments) is None:
                base = dataclasses.replace(preset(base.env), **_read_settings(Path(settings)))
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


def preset(env: str) -> Config:
    """The defaults for an env: those of its family, then its own (`presets/<family>.yaml`)."""
    family = family_of(env)
    settings: dict[str, Any] = {"env": env}
    path = ROOT / "presets" / f"{family}.yaml"
    if path.exists():
        content = yaml.safe_load(path.read_text())
        settings |= content["family"]
        settings |= content.get("tasks", {}).get(env.rpartition("/")[2], {})
    return Config(**settings)


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
