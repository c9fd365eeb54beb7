"""Where a run's metrics can be looked at while it trains: one protocol, and a module a tracker."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from settings.config import Config, ConfigError

Settings = Mapping[str, Any]
"""The settings of a run, as JSON can hold them."""


class TrackerEnded(Exception):
    """A tracker takes nothing any more. Says why, and what can be done about it."""


class Tracker(Protocol):
    """Shows what a run reports. It has been given the run's settings.

    A method raises OSError where the disk takes no more, which may pass, or `TrackerEnded`.

    Attributes:
        name: as `--track` names it.
        page: the command that shows its curves, of this run and of those beside it.
    """

    name: str
    page: str

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Take in finite numbers by their tags, `group/name`, at an environment step."""
        ...

    def film(self, path: Path, step: int) -> None:
        """Take in a film, an mp4, of the policy at an environment step."""
        ...

    def reopen(self) -> None:
        """Go on in a new file, as the run's folder was made anew."""
        ...

    def close(self) -> None:
        """Take in what waits, and end."""
        ...


def refuse_missing(config: Config) -> None:
    """Refuse a tracker whose package is not there.

    Raises:
        ConfigError: with the command that installs it.
    """
    if "wandb" in config.track and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "track is wandb, but the package wandb is not installed: run `make track`, or give"
            " another --track"
        )


def make_trackers(config: Config, run_dir: Path) -> list[Tracker]:
    """The trackers of a run, begun.

    Raises:
        OSError: where a file cannot be opened.
        UserError: where one cannot begin, with the remedy.
    """
    settings = config.to_dict() | {"resume": None, "trust": False, "run_dir": str(run_dir)}
    return [
        _make(name, run_dir, settings) for name in dict.fromkeys(config.track) if name != "none"
    ]


def _make(name: str, run_dir: Path, settings: Settings) -> Tracker:
    if name == "wandb":
        from training.trackers.wandb import Wandb

        return Wandb(run_dir, settings)
    from training.trackers.files import FileTracker

    if name == "tensorboard":
        from training.trackers.tensorboard import TENSORBOARD

        return FileTracker(name, run_dir, settings, TENSORBOARD)
    from training.trackers.visualdl import VISUALDL

    return FileTracker(name, run_dir, settings, VISUALDL)
