"""Where the value of a setting comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from settings.config import Config


class Layer(NamedTuple):
    """Settings from one source, which has no name where they are those that a run has by itself."""

    source: str
    settings: dict[str, Any]


def merged(layers: Sequence[Layer]) -> Config:
    """The settings that layers give, from the lowest to the highest."""
    settings: dict[str, Any] = {}
    for layer in layers:
        settings |= layer.settings
    return Config(**settings)


def source(name: str, value: Any, layers: Sequence[Layer]) -> str:
    """The source of a setting's value.

    Args:
        value: as `Config.to_dict` has it.
        layers: from the lowest to the highest. A setting with another value than that of its
            highest layer follows from others.
    """
    for layer in reversed(layers):
        if name in layer.settings and layer.source:
            given = Config(**{name: layer.settings[name]}).to_dict()[name]
            return layer.source if given == value else "follows from others"
    return "default" if value == Config().to_dict()[name] else "follows from others"
