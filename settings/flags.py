"""The command line as settings: `--name value`, `--name=value`, `--switch`, `--no_switch`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from common.values import allowed, convert, plain_type
from settings.config import FIELDS, HINTS, Config, ConfigError

# names that other libraries give to settings
_ELSEWHERE = {
    "lr": "learning_rate", "num_envs": "env_num", "n_envs": "env_num", "env_id": "env",
    "total_timesteps": "train_total_steps", "timesteps": "train_total_steps",
    "steps": "train_total_steps", "n_steps": "rollout_steps", "num_steps": "rollout_steps",
    "n_epochs": "update_epochs", "clip_coef": "clip_range", "ent_coef": "entropy_coefficient",
    "vf_coef": "value_coefficient",
}  # fmt: skip


def read_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings that flags give, converted. Of a flag that is repeated, the last one counts.

    Raises:
        ConfigError: for a flag that does not exist, or a value that it does not take.
    """
    settings: dict[str, Any] = {}
    for flag, words in _flags_and_words(arguments):
        name = flag.removeprefix("--").replace("-", "_")
        switch = name.removeprefix("no_")
        if name not in FIELDS and switch in FIELDS and plain_type(HINTS[switch]) is bool:
            name, words = switch, [*words, "false"]
        if name not in FIELDS:
            raise ConfigError(unknown(flag, name))
        settings[name] = _value(name, words)
    return settings


def unknown(given: str, name: str) -> str:
    """Say that there is no setting of a name, and which one it may have meant.

    Args:
        given: the name as it was typed.
    """
    near = [_ELSEWHERE[name]] if name in _ELSEWHERE else None
    near = near or difflib.get_close_matches(name.lower(), FIELDS, n=1)
    hint = f"did you mean {near[0] if given == name else f'--{near[0]}'}? " if near else ""
    return f"there is no setting {given}: {hint}--help lists them all"


def _flags_and_words(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag, with the words between it and the next one."""
    flag, words = None, []
    for argument in arguments:
        if argument.startswith("--"):
            if flag is not None:
                yield flag, words
            flag, equals, word = argument.partition("=")
            words = [word] if equals else []
        elif flag is None:
            raise ConfigError(
                f"{argument!r} follows no flag: settings are given as --name value, and --help lists"
                f" them all"
            )
        else:
            words.append(argument)
    if flag is not None:
        yield flag, words


def _value(name: str, words: list[str]) -> Any:
    hint = HINTS[name]
    plain = plain_type(hint)
    if plain is bool and not words:
        words = ["true"]
    if not words or (words == [""] and plain is not str):
        raise ConfigError(f"--{name} needs a value: {allowed(hint)}")
    if plain is not tuple and len(words) > 1:
        raise ConfigError(f"--{name} takes one value, but {' '.join(words)} are {len(words)}")
    value = words if plain is tuple else words[0]
    try:
        return convert(hint, value)
    except ValueError as rule:
        remedy = ""
        if plain is tuple:
            remedy = f": give it as --{name} {' '.join(map(str, getattr(Config, name)))}"
        raise ConfigError(f"{name} is {' '.join(words)}, but must be {rule}{remedy}") from None
