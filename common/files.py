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

_DAY_S = 86_400.0


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
