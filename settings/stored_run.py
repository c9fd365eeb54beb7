"""What is different about the settings of a run whose samples go through a store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import files
from settings.config import MAY_CHANGE_ON_JOIN, Config, ConfigError

_ID = "store_run"  # a file of the run's folder
STORE_LAG = 4  # the default of policy_lag: all trainers make versions


def kept_id(run_dir: Path) -> str | None:
    """The id that the run of a folder has in its store; None where it has had none yet."""
    path = run_dir / _ID
    return path.read_text() if path.exists() else None


def keep_id(run_dir: Path, run: str) -> None:
    """Keep the id of a run for a resume, wherever it came from.

    Raises:
        ConfigError: where the file cannot be written; what stood there before is untouched.
    """
    if kept_id(run_dir) == run:
        return
    path = run_dir / _ID
    temporary = files.temporary(path)
    try:
        temporary.write_text(run)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}. Make room, or give another --run_dir"
        ) from None


def store_defaults(config: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are others by default where samples go through a store.

    Args:
        config: the presets'.
    """
    samplers = given.get("samplers")
    if not isinstance(samplers, int) or samplers < 1:
        return {"policy_lag": STORE_LAG}
    multiple = samplers * config.envs_together  # samplers share them evenly
    env_num = multiple * max(1, round(config.env_num / multiple))
    return {"policy_lag": STORE_LAG, "env_num": env_num}


def refuse_the_runs_own(flags: Mapping[str, Any]) -> None:
    """Refuse flags of a trainer that joins a run, where the run has decided on them.

    Raises:
        ConfigError: for the first one.
    """
    for name, value in sorted(flags.items()):
        if name not in MAY_CHANGE_ON_JOIN:
            raise ConfigError(
                f"--{name} {value} is what the run {flags['join']} decides, which this trainer joins:"
                f" leave the flag out"
            )
