"""The trackers that `--track` names: a module and a line of `_make` each."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from settings.config import Config, ConfigError
from training.trackers.tracker import Settings, Tracker


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
