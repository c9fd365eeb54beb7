"""Checkpoints: safe files with a manifest. Nothing in one is ever unpickled.

    checkpoints/update-00000123/arrays.safetensors   arrays by name
                                state.json           counters and the like
                                manifest.json        SHA-256 of the two
    checkpoints/last -> update-00000123
    checkpoints/best -> best-000000123456            the best evaluation's weights, at its step

A checkpoint is written beside its place, synced to disk and renamed, and a link is replaced by
renaming another over it. So a crash at any moment leaves a whole checkpoint behind every name that
had one.
"""

from __future__ import annotations

import fnmatch
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

from common import files
from common.errors import UserError
from common.files import CannotWrite

KEEP = 3
FILES = ("arrays.safetensors", "state.json")
MODEL = "model/"  # how the names of the model's arrays begin
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # where a file should be


class BadCheckpoint(UserError):
    """A checkpoint that is damaged or missing. The message names it."""


class UnreadCheckpoint(UserError):
    """A checkpoint that cannot be read now, as of a file system that has gone. The message says why."""


class Checkpoint(NamedTuple):
    """The contents of a checkpoint, and the folder that it came from."""

    arrays: dict[str, np.ndarray]
    state: dict[str, Any]
    path: Path

    @property
    def step(self) -> int:
        """Environment steps that its weights were trained for.

        Raises:
            BadCheckpoint: where it does not say so.
        """
        return self._counter("global_step")

    @property
    def update(self) -> int:
        """Updates that led to its weights.

        Raises:
            BadCheckpoint: where it does not say so.
        """
        return self._counter("update")

    def _counter(self, name: str) -> int:
        count = self.state.get(name)
        if not isinstance(count, int):
            raise BadCheckpoint(f"checkpoint {self.path} is of no run: its {name} is {count!r}")
        return count


def write(folder: Path, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Write one checkpoint at `folder`, replacing the one that is there, all or nothing.

    Raises:
        CannotWrite: for a full disk and the like; what was there before is still there.
    """
    contents = {
        "arrays.safetensors": format_arrays(
            {k: np.asarray(v, order="C") for k, v in arrays.items()}
        ),
        "state.json": json.dumps(state, indent=1).encode(),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents["manifest.json"] = json.dumps({"sha256": digests}, indent=1).encode()
    temporary, old = files.temporary(folder), files.old(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name.partition('-')[0]}*.tmp"):
            files.remove(left)  # a writer was stopped: nobody else writes here now
        temporary.mkdir()
        for name, content in contents.items():
            with open(temporary / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        files.sync(temporary)
        if folder.exists():  # between the two renames, `load` takes the old one
            files.remove(old)
            folder.rename(old)
        temporary.rename(folder)
        files.sync(folder.parent)
        files.remove(old)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # it takes the room that is missing
        raise CannotWrite(
            f"checkpoint {folder} cannot be written: {error.strerror}; earlier checkpoints are as"
            f" they were. Make room",
            error,
        ) from None


def save(
    checkpoints: Path, update: int, arrays: dict[str, np.ndarray], state: dict[str, Any]
) -> None:
    """Write the checkpoint of an update, point `last` at it, and keep the newest `KEEP`.

    Checkpoints of later updates are set aside: as `corrupt-<update>` where they are, and so were
    passed over when the run was resumed; as `superseded-<update>` where a sample store came back empty
    and the run went on from older weights.

    Raises:
        CannotWrite: for a full disk and the like; the earlier checkpoints are still there.
    """
    folder = checkpoints / f"update-{update:08d}"
    write(folder, arrays, state)
    files.point(checkpoints / "last", folder)
    try:
        folders = _updates(checkpoints)
        place = folders.index(folder) + 1
        for later in folders[place:]:
            if later.exists():
                aside = later.with_name(later.name.replace("update", _why_aside(later)))
                files.remove(aside)
                later.rename(aside)
        for earlier in folders[: max(0, place - KEEP)]:
            files.remove(earlier)
            files.remove(files.old(earlier))
    except OSError as error:
        raise CannotWrite(
            f"old checkpoints in {checkpoints} cannot be removed: {error.strerror}:"
            f" {error.filename}; the newest, {folder.name}, is whole",
            error,
        ) from None


def _why_aside(folder: Path) -> str:
    try:
        load(folder)
    except BadCheckpoint:
        return "corrupt"
    except UnreadCheckpoint:
        pass  # it may be good
    return "superseded"


def save_best(
    checkpoints: Path, step: int, arrays: dict[str, np.ndarray], state: dict[str, Any]
) -> None:
    """Write the weights of the best evaluation and point `best` at them.

    The best one before it is kept too, for whoever is reading it.

    Raises:
        CannotWrite: for a full disk and the like; the earlier best is still there.
    """
    link, folder = checkpoints / "best", checkpoints / f"best-{step:012d}"
    before = checkpoints / link.resolve().name
    write(folder, arrays, state)
    files.point(link, folder)
    try:
        for earlier in checkpoints.glob("best-*"):
            if earlier not in (folder, before):
                files.remove(earlier)
        for replaced in checkpoints.glob(".best-*.old"):
            if before.exists() or replaced != files.old(before):
                files.remove(replaced)
    except OSError as error:
        raise CannotWrite(
            f"an earlier best checkpoint cannot be removed: {error.strerror}: {error.filename}; the"
            f" best one, {folder.name}, is whole",
            error,
        ) from None


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint that `load` would read. Raises as `load` does."""
    return _found(folder) is not None


def _found(folder: Path) -> Path | None:
    """Where a checkpoint lies: elsewhere where a writer was stopped between two renames; None: nowhere.

    Raises:
        BadCheckpoint: for a link that leads to itself.
        UnreadCheckpoint: where that cannot be seen.
    """
    try:
        folder = folder.resolve()
        return next((place for place in (folder, files.old(folder)) if place.is_dir()), None)
    except RuntimeError:
        raise BadCheckpoint(f"checkpoint {folder} is a link that leads to itself") from None
    except OSError as error:
        raise _unread(folder, error) from None


def _unread(folder: Path, error: OSError) -> UnreadCheckpoint:
    return UnreadCheckpoint(
        f"checkpoint {folder} cannot be read: {error.strerror}. It may be good: see to that, and try"
        f" again"
    )


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint and check it against its manifest.

    Raises:
        BadCheckpoint: naming the folder and what is wrong.
        UnreadCheckpoint: where the disk or the file system does not give it.
    """
    place = _found(folder)
    if place is None:
        raise BadCheckpoint(f"checkpoint {folder} does not exist")
    folder = place
    try:
        digests = json.loads((folder / "manifest.json").read_bytes())["sha256"]
        if set(digests) != set(FILES):
            raise ValueError(f"its manifest names {', '.join(digests)}, not {', '.join(FILES)}")
        contents = {name: (folder / name).read_bytes() for name in FILES}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != digests[name]:
                raise ValueError(f"{name} does not match its hash")
        arrays, state = (
            parse_arrays(contents["arrays.safetensors"]),
            json.loads(contents["state.json"]),
        )
        if not isinstance(state, dict):
            raise ValueError("state.json holds no JSON object")
        return Checkpoint(arrays, state, folder)
    except (*_NO_FILE, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise BadCheckpoint(f"checkpoint {folder} is corrupt: {error}") from None
    except OSError as error:
        raise _unread(folder, error) from None


def load_newest(checkpoints: Path) -> tuple[Checkpoint, list[str]]:
    """The newest good checkpoint, and the complaints about corrupt ones that were passed over.

    Raises:
        BadCheckpoint: where there is none.
        UnreadCheckpoint: for one that cannot be read, and so may be good.
    """
    complaints: list[str] = []
    for folder in reversed(_readable_updates(checkpoints)):
        try:
            return load(folder), complaints
        except BadCheckpoint as error:
            complaints.append(str(error))
    reason = "; ".join(complaints) or "it holds none"
    raise BadCheckpoint(
        f"no good checkpoint in {checkpoints}: {reason}; put back what is missing, or start a new run"
    )


def newest(checkpoints: Path) -> Path | None:
    """The place of the newest update's checkpoint, be it good or corrupt; None where there is none.

    Raises:
        UnreadCheckpoint: where that cannot be seen.
    """
    return next(reversed(_readable_updates(checkpoints)), None)


def part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _readable_updates(checkpoints: Path) -> list[Path]:
    """The places of the updates' checkpoints, oldest first; none where there is no folder of them.

    Raises:
        UnreadCheckpoint: for a folder that cannot be looked into, such as a link to a disk that has gone.
    """
    try:
        return _updates(checkpoints)
    except _NO_FILE as error:
        if checkpoints.is_symlink():
            raise _unread(checkpoints, error) from None
        return []
    except OSError as error:
        raise _unread(checkpoints, error) from None


def _updates(checkpoints: Path) -> list[Path]:
    names = os.listdir(checkpoints)  # glob would not say that it cannot
    replaced = {n[1 : -len(".old")] for n in fnmatch.filter(names, ".update-*.old")}
    return [checkpoints / name for name in sorted({*fnmatch.filter(names, "update-*"), *replaced})]
