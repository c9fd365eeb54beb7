"""The values that a setting may have: its type, its bounds, and the settings that it needs.

A setting says all of this in its annotation, so that it is written in one place:

    reward_clip: Annotated[Positive, Needs(reward_transform="return_std")] = 10.0
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from enum import Enum
from numbers import Real
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin


class Bound(NamedTuple):
    """A bound of a number, in words and as a test."""

    rule: str
    holds: Callable[[float], bool]


Natural = Annotated[int, Bound("of at least 0", lambda x: x >= 0)]
Count = Annotated[int, Bound("of at least 1", lambda x: x >= 1)]
NotNegative = Annotated[float, Bound("of at least 0", lambda x: x >= 0)]
Positive = Annotated[float, Bound("greater than 0", lambda x: x > 0)]
Share = Annotated[float, Bound("from 0 to 1", lambda x: 0 <= x <= 1)]
PositiveShare = Annotated[float, Bound("greater than 0, up to 1", lambda x: 0 < x <= 1)]


_HOME = object()  # among an annotation's entries: ~ stands for the user's home, as shells have it
FileName = Annotated[str, Bound("that is not empty", bool), _HOME]
_ABSOLUTE = object()  # among them, too: the name is the same wherever a run is resumed
FolderName = Annotated[str, Bound("that is not empty", bool), _HOME, _ABSOLUTE]


class Switch(Enum):
    """Of a setting: `OFF` is None, 0 and False, `ON` any other value."""

    OFF, ON = False, True


OFF, ON = Switch.OFF, Switch.ON


class Needs:
    """Where a setting has an effect: where one of other settings has one of these values.

    Args:
        alternatives: a setting's name, with a value, a tuple of values, ON or OFF.
    """

    def __init__(self, **alternatives: Any):
        self._alternatives = alternatives

    def hold(self, config: Any) -> bool:
        """Whether they do. A setting that is still to be decided (auto) counts as it must."""
        return any(
            _fits(getattr(config, name), wanted) for name, wanted in self._alternatives.items()
        )

    def __str__(self) -> str:
        return " or ".join(_in_words(name, wanted) for name, wanted in self._alternatives.items())


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Switch):
        return bool(value) == wanted.value
    return value == "auto" or value in (wanted if isinstance(wanted, tuple) else (wanted,))


def _in_words(name: str, wanted: Any) -> str:
    if isinstance(wanted, Switch):
        return name if wanted is ON else f"no {name}"
    return f"{name} {' or '.join(map(str, wanted)) if isinstance(wanted, tuple) else wanted}"


def needs(hint: Any) -> Iterator[Needs]:
    """The `Needs` in a setting's annotation."""
    if get_origin(hint) is Annotated:
        yield from (entry for entry in get_args(hint)[1:] if isinstance(entry, Needs))


class _TooLarge(ValueError):
    """A whole number of more than 64 bits, which torch and the formats of trackers do not take."""


def convert(hint: Any, value: Any) -> Any:
    """A value as the type that a setting's annotation asks for.

    A value that can mean one thing only is converted: the string 3e-4 (YAML 1.1 takes it for no
    number) to a number, 1e6 to a whole number, and YAML 1.1's truth value for `on` to the choice
    that is spelled so. Values from a command line are strings, or lists of strings.

    Raises:
        ValueError: for any other value; the message says which are allowed.
    """
    try:
        return _converted(hint, value)
    except _TooLarge:
        raise ValueError(f"{allowed(hint)}, less than 2^63") from None
    except (ValueError, OverflowError):
        raise ValueError(allowed(hint)) from None


def _converted(hint: Any, value: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _converted(arguments[0], value)
        if not all(entry.holds(value) for entry in arguments if isinstance(entry, Bound)):
            raise ValueError
        if _HOME in arguments:
            value = os.path.expanduser(value)
        return os.path.abspath(value) if _ABSOLUTE in arguments else value
    if _is_optional(hint):
        return None if value in (None, "None", "null") else _converted(arguments[0], value)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_converted(arguments[0], entry) for entry in value)
    if origin is Literal:
        return _choice(arguments, value)
    if hint in _SIMPLE:
        return _SIMPLE[hint](value)
    raise ValueError


def _choice(choices: tuple[Any, ...], value: Any) -> Any:
    if isinstance(value, bool):
        value = "on" if value else "off"
    if value not in choices:
        raise ValueError
    return value


def _truth(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (Real, str)):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _whole(value: Any) -> int:
    number = _number(value)
    if not number.is_integer():
        raise ValueError
    try:
        whole = int(value)  # more digits than a float has, as a long seed may have
    except ValueError:
        whole = int(number)
    if not -(2**63) <= whole < 2**63:
        raise _TooLarge
    return whole


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _path(value: Any) -> Path:
    return Path(value) if isinstance(value, Path) else Path(_text(value))


_SIMPLE: dict[Any, Callable[[Any], Any]] = {
    bool: _truth, int: _whole, float: _number, str: _text, Path: _path,
}  # fmt: skip
_IN_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path",
}  # fmt: skip
_FORMS = {bool: "true|false", int: "N", float: "X", str: "TEXT", Path: "PATH"}


def allowed(hint: Any) -> str:
    """The values that a type takes, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [entry.rule for entry in arguments if isinstance(entry, Bound)]
        return " ".join([allowed(arguments[0]), *bounds])
    if _is_optional(hint):
        return f"{allowed(arguments[0])}, or null"
    if origin is tuple:
        return f"a list, each entry {allowed(arguments[0])}"
    if origin is Literal:
        return " or ".join(arguments)
    return _IN_WORDS[hint]


def form(hint: Any) -> str:
    """The values that a type takes, in short: N for a whole number, X for a number, a|b for choices."""
    bare = _bare(hint)
    if get_origin(bare) is tuple:
        return f"{form(get_args(bare)[0])}..."
    return "|".join(choices(bare)) or _FORMS[bare]


def plain_type(hint: Any) -> Any:
    """The type under an annotation, without None: int, float, str, bool, tuple or Literal."""
    bare = _bare(hint)
    return get_origin(bare) or bare


def choices(hint: Any) -> tuple[str, ...]:
    """The words among which a type chooses; none for a type that takes others."""
    bare = _bare(hint)
    return get_args(bare) if get_origin(bare) is Literal else ()


def _bare(hint: Any) -> Any:
    while get_origin(hint) is Annotated or _is_optional(hint):
        hint = get_args(hint)[0]
    return hint


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def is_port(text: str) -> bool:
    """Whether a text is the number of a port that can be connected to."""
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536
