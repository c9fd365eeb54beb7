"""Checkpoints: safe files with a manifest. Nothing in one is ever unpickled.

    checkpoints/update-00000123/arrays.safetensors   arrays by name
                                state.json           counters and the like
                                manifest.json        SHA-256 of the two
    checkpoints/last -> update-00000123
    checkpoints/best/                                the best evaluation's weights, same files

A checkpoint is written beside its place, synced to disk and renamed, so that a crash at any moment
leaves either the whole of it or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as parse_arrays
from safetensors.numpy import save as format_arrays

from common.errors import UserError

KEEP = 3
MODEL = "model/"  # how the names of the model's arrays begin


class BadCheckpoint(UserError):
    """A checkpoint that is damaged or missing. The message names it."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds, and the folder that it came from."""

    arrays: dict[str, np.ndarray]
    state: dict[str, Any]
    path: Path


def write(folder: Path, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Write one checkpoint at `folder`, replacing what is there, all or nothing."""
    contents = {
        "arrays.safetensors": format_arrays(
            {k: np.asarray(v, order="C") for k, v in arrays.items()}
        ),
        "state.json": json.dumps(state, indent=1).encode(),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents["manifest.json"] = json.dumps({"sha256": digests}, indent=1).encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name, content in contents.items():
        with open(temporary / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync(temporary)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)
    _sync(folder.parent)


def save(
    checkpoints: Path, update: int, arrays: dict[str, np.ndarray], state: dict[str, Any]
) -> None:
    """Write the checkpoint of an update, point `last` at it, and keep the newest `KEEP`."""
    folder = checkpoints / f"update-{update:08d}"
    write(folder, arrays, state)
    link = checkpoints / ".last.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    os.replace(link, checkpoints / "last")
    _sync(checkpoints)
    for old in _updates(checkpoints)[:-KEEP]:
        shutil.rmtree(old)


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint and check it against its manifest.

    Raises:
        BadCheckpoint: naming the folder and what is wrong.
    """
    folder = folder.resolve()
    try:
        digests = json.loads((folder / "manifest.json").read_bytes())["sha256"]
        contents = {name: (folder / name).read_bytes() for name in digests}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != digests[name]:
                raise BadCheckpoint(
                    f"checkpoint {folder} is corrupt: {name} does not match its hash"
                )
        return Checkpoint(
            parse_arrays(contents["arrays.safetensors"]), json.loads(contents["state.json"]), folder
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BadCheckpoint(f"checkpoint {folder} is corrupt: {error}") from None


def load_newest(checkpoints: Path) -> tuple[Checkpoint, list[str]]:
    """The newest good checkpoint, and what was said of the corrupt ones that were passed over.

    Raises:
        BadCheckpoint: where there is none.
    """
    complaints: list[str] = []
    for folder in reversed(_updates(checkpoints)):
        try:
            return load(folder), complaints
        except BadCheckpoint as error:
            complaints.append(str(error))
    found = "; ".join(complaints) or "it holds none"
    raise BadCheckpoint(f"no good checkpoint in {checkpoints}: {found}")


def part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _updates(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("update-*"))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
