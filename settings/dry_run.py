"""`--dry_run`: the settings that a run would have, and where each comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import yaml

from common.terminal import end_with_the_reader
from settings.config import Config
from settings.groups import groups
from settings.layers import Layer, source

DRY_RUN = "--dry_run"
_WIDTH = 44  # of a setting and its value, before its source
_END = "...\n"  # of a YAML document that is a single word
_OF_A_COMMAND = ("resume", "trust", "config")  # what a file of settings does not say


def print_settings(config: Config, layers: Sequence[Layer]) -> NoReturn:
    """Print every setting, and exit. What is printed can be given as `--config FILE`.

    Args:
        layers: from the lowest to the highest.
    """
    end_with_the_reader()
    values = config.to_dict()
    for group in groups():
        print(f"# {group.title}")
        for name in group.settings:
            if name in _OF_A_COMMAND:
                continue
            if name == "run_dir" and config.resume is not None:
                continue  # that of the run that is there already
            text = yaml.safe_dump(values[name], default_flow_style=True, width=10_000)
            line = f"{name}: {text.removesuffix(_END).strip()}"
            print(f"{line:{_WIDTH}}  # {source(name, values[name], layers)}")
    raise SystemExit(0)
