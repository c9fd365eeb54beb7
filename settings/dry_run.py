"""`--dry_run`: the settings that a run would have, and where each comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import yaml

from settings.config import Config

DRY_RUN = "--dry_run"
_WIDTH = 44  # of a setting and its value, before its source
_END = "...\n"  # of a YAML document that is a single word
_OF_A_COMMAND = ("resume", "trust", "config")  # what a file of settings does not say


class Layer(NamedTuple):
    """Settings from one source, which has no name where they are those that a run has by itself."""

    source: str
    settings: dict[str, Any]


def print_settings(config: Config, layers: Sequence[Layer]) -> NoReturn:
    """Print every setting, and exit. What is printed can be given as `--config FILE`.

    Args:
        layers: from the lowest to the highest. A setting with another value than that of its
            highest layer follows from others.
    """
    settings = config.to_dict()
    for name, value in settings.items():
        if name in _OF_A_COMMAND:
            continue
        if name == "run_dir" and config.resume is not None:
            continue  # that of the run that is there already
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
        line = f"{name}: {text.removesuffix(_END).strip()}"
        print(f"{line:{_WIDTH}}  # {_source(name, value, layers)}")
    raise SystemExit(0)


def _source(name: str, value: Any, layers: Sequence[Layer]) -> str:
    for layer in reversed(layers):
        if name in layer.settings and layer.source:
            given = Config(**{name: layer.settings[name]}).to_dict()[name]
            return layer.source if given == value else "follows from others"
    return "default" if value == Config().to_dict()[name] else "follows from others"
