"""Files that are there whole, or as they were before."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import UserError

_DAY_S = 86_400.0


class CannotWrite(UserError):
    """A file that could not be written. The message says which, and what is left.

    Attributes:
        reason: the system's, such as No space left on device.
    """

    def __init__(self, message: str, error: OSError):
        super().__init__(message)
        self.reason = error.strerror or str(error)


def _unfinished(path: Path, writer: str, quote: Callable[[str], str] = str) -> str:
    """The name of a file until it is whole. Its ending stays, which tells its writer what it is."""
    return f".{quote(path.stem[:20])}.{writer}.unfinished{quote(path.suffix)}"


def remove_unfinished(path: Path, pid: int | None = None) -> None:
    """Remove what killed processes have left of a file.

    Args:
        pid: of a process that has ended; None: whoever began it a day ago and more.
    """
    writer = "*" if pid is None else f"{pid}-*"
    with contextlib.suppress(OSError):  # the folder has gone
        for part in path.parent.glob(_unfinished(path, writer, glob.escape)):
            with contextlib.suppress(OSError):  # another process was faster
                if pid is not None or time.time() - part.stat().st_mtime > _DAY_S:
                    part.unlink()


@contextlib.contextmanager
def replacing(path: Path, refused: Callable[[OSError], Exception]) -> Iterator[Path]:
    """A new file to write in this block, which then takes the place of `path`; not where the block raises.

    A link stays, and what it leads to is replaced; a file's mode stays too.

    Args:
        refused: the error for the user, where the folder does not take the file.
    """
    place = Path(os.path.realpath(path))
    # process ids repeat on other machines and in containers, which may share the folder
    part = place.with_name(_unfinished(path, f"{os.getpid()}-{secrets.token_hex(4)}"))
    try:
        if place.exists() and not place.is_file():
            raise FileExistsError(errno.EEXIST, "it is there already, and is no file")
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(place.with_name(path.name))
        part.touch()
        if place.exists():
            shutil.copymode(place, part)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise refused(error) from None
    try:
        yield part
        try:
            part.replace(place)
        except OSError as error:
            raise refused(error) from None
    finally:
        with contextlib.suppress(OSError):  # such as of a disk that cannot be written any more
            part.unlink(missing_ok=True)


def point(link: Path, folder: Path) -> None:
    """Let a symbolic link point at a folder beside it, replacing the link in one step.

    A folder may stand in the link's place: earlier versions wrote `best` as one, and copying may
    turn a link into one.
    """
    fresh = temporary(link)
    try:
        remove(fresh)
        fresh.symlink_to(folder.name)
        if link.is_dir() and not link.is_symlink():
            remove(old(link))
            link.rename(old(link))
        os.replace(fresh, link)
        sync(link.parent)
        remove(old(link))
    except OSError as error:
        raise CannotWrite(
            f"link {link} cannot be written: {error.strerror}. Make room", error
        ) from None


def temporary(path: Path) -> Path:
    """The place of what is to stand at `path` until it is whole."""
    return path.with_name(f".{path.name}.tmp")


def old(path: Path) -> Path:
    """The place of what stood at `path` while it is replaced."""
    return path.with_name(f".{path.name}.old")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, where there is one."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path)


def sync(folder: Path) -> None:
    """Have the names in a folder written to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
