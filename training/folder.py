"""A run's folder: made for one run, and used by one process at a time, also where it is removed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from common.files import CannotWrite
from common.locks import lock
from settings.config import Config, ConfigError
from settings.sources import is_run_config
from settings.trust import remember
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
            opened.enter_context(_locked(run_dir))
        except BlockingIOError:
            raise ConfigError(
                f"run_dir {run_dir} belongs to a run that still runs: wait for its end or stop it,"
                f" or name another folder"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"run_dir cannot be used: {error.strerror}: {error.filename or config.run_dir}; give another --run_dir"
            ) from None
        if config.resume is None:
            _refuse_used(run_dir)
            write_config(run_dir, config)
        remember(run_dir, config)
        yield run_dir


class Place:
    """A run's folder while the run lives, which may be removed under it.

    Args:
        run_dir: the folder, which exists.
        config: the run's settings.

    Attributes:
        checkpoints: where in it the checkpoints are.
    """

    def __init__(self, run_dir: Path, config: Config):
        self._run_dir, self._config = run_dir, config
        self.checkpoints = run_dir / "checkpoints"
        self._opened = contextlib.ExitStack()
        self._hold()

    def _hold(self) -> None:
        # while it is open, no other folder gets its number
        self._descriptor = os.open(self._run_dir, os.O_RDONLY | os.O_DIRECTORY)
        self._opened.callback(os.close, self._descriptor)

    def check(self) -> None:
        """Refuse to write where another folder has the place of this one.

        Raises:
            CannotWrite: for another folder, or none.
        """
        try:
            is_ours = os.path.samestat(os.stat(self._run_dir), os.fstat(self._descriptor))
            error = FileExistsError(errno.EEXIST, "another folder has its place")
        except OSError as missing:
            is_ours, error = False, missing
        if not is_ours:
            raise CannotWrite(
                f"run folder {self._run_dir} cannot be written: {error.strerror}", error
            )

    def restore(self) -> bool:
        """Make the folder anew where it, or what it held, was removed; whether it was.

        Raises:
            CannotWrite: where another folder has its place.
            OSError: where it cannot be made.
        """
        if not self._run_dir.exists():
            self._run_dir.mkdir(parents=True)
            self._hold()
        self.check()
        if (self._run_dir / "config.yaml").exists():
            return False
        if not (self._run_dir / ".lock").exists():
            self._opened.enter_context(_locked(self._run_dir))
        write_config(self._run_dir, self._config)
        return True

    def close(self) -> None:
        self._opened.close()


def _refuse_used(run_dir: Path) -> None:
    """Refuse a folder with a run in it: one that could not start has left its settings at most.

    Raises:
        ConfigError: for such a folder, and for a config.yaml of the user's own.
    """
    saved, metrics = run_dir / "config.yaml", run_dir / "metrics.jsonl"
    if not saved.exists():
        return
    if (run_dir / "checkpoints").exists() or (metrics.exists() and metrics.stat().st_size > 0):
        raise ConfigError(
            f"run_dir {run_dir} already holds a run: go on with it by --resume"
            f" {shlex.quote(str(run_dir))}, name another folder, or delete this one"
        )
    if not is_run_config(saved):
        raise ConfigError(
            f"run_dir {run_dir} has a config.yaml of your own, which that of the run would replace: name"
            f" another folder, or give the file another name"
        )


@contextlib.contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    with open(run_dir / ".lock", "w") as file:
        lock(file)
        yield


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
