"""Which code may be imported that nobody typed: a class `module:Class` that a file of settings names.

Whoever wrote a run's folder, or a file of settings, would choose a module to be run here. So it is
imported only where the user types its name, or --trust; or where the folder is one in which the user's
own train.py has run with that class. Those are remembered outside of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from settings.config import Config, ConfigError

CODE = ("env", "network")  # the settings that may name a class
_OWN_RUNS = Path(".config") / "dppo" / "own_runs"  # below the home folder; a hash on each line


def _entry(run_dir: Path, config: Config) -> str:
    names = [str(run_dir.resolve()), *(getattr(config, setting) for setting in CODE)]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _is_own(run_dir: Path, config: Config) -> bool:
    try:
        with open(Path.home() / _OWN_RUNS) as file:
            about = os.fstat(file.fileno())
            private = about.st_uid == os.getuid() and not about.st_mode & 0o022
            return private and _entry(run_dir, config) in file.read().split()
    except (OSError, RuntimeError):  # nothing was ever remembered, or there is no home
        return False


def remember(run_dir: Path, config: Config) -> None:
    """Take a run's folder for the user's own from now on, with the code that its settings name."""
    if not names_code(config) or _is_own(run_dir, config):
        return
    with contextlib.suppress(OSError, RuntimeError):  # then --trust has to be given
        path = Path.home() / _OWN_RUNS
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, f"{_entry(run_dir, config)}\n".encode())
        finally:
            os.close(descriptor)


def names_code(config: Config) -> list[str]:
    """The settings that name a class."""
    return [name for name in CODE if ":" in getattr(config, name)]


def refuse_strangers_code(config: Config, source: Path | str, typed: Collection[str] = ()) -> None:
    """Refuse settings that name a class which nobody typed and nobody trusts.

    Args:
        source: the run's folder, or the file, that they come from; or another source, in words,
            which is never the user's own.
        typed: the settings that the user has typed.

    Raises:
        ConfigError: with the remedy.
    """
    for setting in names_code(config):
        is_own = isinstance(source, Path) and _is_own(source, config)
        if setting not in typed and not config.trust and not is_own:
            name = getattr(config, setting)
            raise ConfigError(
                f"{setting} {name} of {source} is code: it would import the module"
                f" {name.partition(':')[0]} of this folder or of PYTHONPATH. Give --trust if you know"
                f" that module"
            )
