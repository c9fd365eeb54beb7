"""Reads YAML files of settings, whatever they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from settings.config import ConfigError

# yaml's own errors are not all that it raises: `2001-99-99` is a ValueError, `!!int ""` an IndexError
_UNREADABLE = (
    yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError,
    RecursionError,
)  # fmt: skip


def load_yaml(path: Path) -> Any:
    """What a file holds.

    Raises:
        ConfigError: where it cannot be read.
    """
    try:
        return yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(
            f"cannot read the settings in {path}: {where}{error.problem}; write one `name: value` a line"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read the settings in {path}: {error.strerror}") from None
    except _UNREADABLE as error:
        raise ConfigError(
            f"cannot read the settings in {path}: {' '.join(str(error).split())}"
        ) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a file that the user or a run wrote, as they stand there.

    Raises:
        ConfigError: where it cannot be read, or holds none.
    """
    content = load_yaml(path)
    settings = content.get("config", content) if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings: write one `name: value` a line")
    # no file says of itself that it is trusted
    return {str(name): value for name, value in settings.items() if name != "trust"}
