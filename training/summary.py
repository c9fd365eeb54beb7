"""The records of a run's folder: what it was started with, what a resume changed, how it ended.

config.yaml     the settings, the command, the versions; written once
resumes.yaml    for each --resume: its command, its versions, the settings that it changed
summary.json    how the run ended; a resume takes it away, so a run that has one has ended
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import sys
import time
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from agent import PPOAgent
from common import files
from common.checkpoint import MODEL, part
from common.files import CannotWrite
from common.sources import ROOT, digest, sources
from settings.config import Config

VERSIONED = (
    "torch", "numpy", "gymnasium", "mujoco", "ale-py", "parl", "numba", "grpcio", "pyzmq",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's result depends on."""
    installed = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def project() -> dict[str, str]:
    """The project's own version, and the hash of the sources that run (`common.sources.digest`)."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return {"version": version, "sources": digest(sources())}


def write_config(run_dir: Path, config: Config) -> None:
    """Write config.yaml: everything that is needed to repeat the run.

    Raises:
        CannotWrite: where it cannot be written.
    """
    content = {
        "config": config.to_dict() | {"resume": None, "trust": False},
        "versions": versions(),
        "project": project(),
        "command": sys.argv,
    }
    write_whole(run_dir / "config.yaml", yaml.safe_dump(content, sort_keys=False))


def note_resume(run_dir: Path, before: Config, now: Config) -> None:
    """Append to resumes.yaml what a resume was started with, and the settings that it changed.

    The summary of the part before it is taken away: whoever follows the run knows its end by it.

    Args:
        before, now: the run's settings until now, and from now on.

    Raises:
        CannotWrite: where it cannot be written.
    """
    path = run_dir / "resumes.yaml"
    earlier = yaml.safe_load(path.read_text()) if path.exists() else []
    old, new = before.to_dict(), now.to_dict()
    # where it lies, and who trusts it, are not settings
    old |= {name: new[name] for name in ("resume", "run_dir", "trust")}
    changed = {name: value for name, value in new.items() if value != old[name]}
    resume = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "config": changed,
        "versions": versions(),
        "project": project(),
        "command": sys.argv,
    }
    write_whole(path, yaml.safe_dump([*earlier, resume], sort_keys=False))
    (run_dir / "summary.json").unlink(missing_ok=True)


def write_summary(run_dir: Path, content: Mapping[str, Any]) -> None:
    """Write summary.json: `content`, the versions, and the project's own.

    Raises:
        CannotWrite: where it cannot be written.
    """
    numbers = {name: plain(value) for name, value in content.items()}
    content = {**numbers, "versions": versions(), "project": project()}
    write_whole(run_dir / "summary.json", json.dumps(content, indent=2) + "\n")


def plain(value: Any) -> Any:
    """A value as JSON can hold it: it has no NaN, so a number that is not known is null."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def weights_digest(agent: PPOAgent) -> str:
    """SHA-256 over the bytes of the parameters, in the order of their names."""
    arrays = part(agent.state()[0], MODEL)
    names = sorted(name for name, _ in agent.model.named_parameters())
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in names)).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, also where the machine stops in the midst of it.

    Raises:
        CannotWrite: where it cannot be written; what stood there before is untouched.
    """
    temporary = files.temporary(path)
    try:
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CannotWrite(
            f"{path} cannot be written: {error.strerror}; what stood there before is untouched. Make"
            f" room, or make its folder writable",
            error,
        ) from None
