"""`--help`: every setting with its values, its default, and where that comes from."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from common.values import allowed, form, needs, plain_type
from settings.config import HINTS, Config
from settings.groups import groups
from settings.layers import Layer, source

_WIDEST = 100  # characters of a line, however wide the terminal is
_INDENT = 6  # of what is said about a flag


def print_help(program: str, config: Config, layers: Sequence[Layer]) -> NoReturn:
    """Print every setting, and exit.

    Args:
        config: whose values are shown as the defaults.
        layers: where they come from, from the lowest to the highest. (): nothing is given, so
            they are those of the dataclasses.
    """
    where = (
        "A default that a preset, a file or a flag has changed is followed by its place."
        if layers
        else "The defaults are those before any preset; environments have presets with others, also the one"
        f" that is trained by default: see `{program} --env ID --help`."
    )
    print(f"usage: {program} [--env ID] [--NAME VALUE]...\n")
    _print_wrapped(
        f"Train an agent with distributed PPO. {where} --dry_run prints the settings that a run would"
        f" have, and starts nothing; --completion bash or zsh prints a script for the shell."
    )
    values = config.to_dict()
    for group in groups():
        print()
        _print_wrapped(f"{group.title}:")
        for name, text in group.settings.items():
            print(f"  {_flag(name)}")
            _print_wrapped(text, _INDENT)
            _print_wrapped("; ".join(_about(name, values[name], layers)), _INDENT)
    raise SystemExit(0)


def _print_wrapped(text: str, indent: int = 0) -> None:
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    room = max(1, width - indent)
    for line in textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False):
        print(" " * indent + line)


def _flag(name: str) -> str:
    if plain_type(HINTS[name]) is bool:
        return f"--{name}, --no_{name}"
    return f"--{name} {form(HINTS[name])}"


def _about(name: str, value: Any, layers: Sequence[Layer]) -> list[str]:
    """The default of a setting, what it may be, and the settings without which it has no effect."""
    hint, words = HINTS[name], []
    if value is not None:
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        place = source(name, value, layers)
        words.append(f"default {shown}" + (f" ({place})" if place != "default" else ""))
    if plain_type(hint) in (int, float):
        words.append(allowed(hint).removesuffix(", or null"))
    return words + [f"needs {need}" for need in needs(hint)]
