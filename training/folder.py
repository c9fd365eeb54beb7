"""A run's folder: made for one run, and used by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from settings.config import Config, ConfigError
from training.summary import write_config


@contextlib.contextmanager
def run_folder(config: Config) -> Iterator[Path]:
    """The run's folder, with its config.yaml, locked for as long as the run lives.

    The lock is the kernel's, so it ends with the process, however the process ends.

    Raises:
        ConfigError: where the folder cannot be written, holds a run, or is in use.
    """
    with contextlib.ExitStack() as opened:
        try:
            run_dir = _make(config)
            lock = opened.enter_context(open(run_dir / ".lock", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run_dir {run_dir} belongs to a run that still runs: wait for its end or stop it,"
                f" or name another folder"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"run_dir cannot be used: {error.strerror}: {error.filename}; give another --run_dir"
            ) from None
        if config.resume is None and (run_dir / "config.yaml").exists():
            raise ConfigError(
                f"run_dir {run_dir} already holds a run: go on with it by --resume {run_dir}, name"
                f" another folder, or delete this one"
            )
        if config.resume is None:
            write_config(run_dir, config)
        yield run_dir


def _make(config: Config) -> Path:
    """Make the folder that was asked for, or a new one under `runs`."""
    if config.run_dir is not None:
        run_dir = Path(config.run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        return run_dir
    name = config.env.replace("/", "-").replace(":", "-")
    default = f"runs/{name}__s{config.seed}__{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):  # several runs may begin in one second
        run_dir = Path(default if number == 1 else f"{default}-{number}")
        with contextlib.suppress(FileExistsError):
            run_dir.mkdir(parents=True)
            return run_dir
    raise AssertionError  # the count is endless
