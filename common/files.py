"""Files that are there whole, or as they were before."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def unfinished(path: Path, writer: int) -> Path:
    """Where the process `writer` writes a file until it is whole: beside it, with its ending."""
    return path.with_name(f".{path.stem[:20]}.{writer}.unfinished{path.suffix}")


@contextlib.contextmanager
def replacing(path: Path, refused: Callable[[OSError], Exception]) -> Iterator[Path]:
    """A new file to write in this block, which then takes the place of `path`; not where the block raises.

    A link stays, and what it leads to is replaced; a file's mode stays too.

    Args:
        refused: the error for the user, where the folder does not take the file.
    """
    place = Path(os.path.realpath(path))
    # the ending tells its writer what it is
    part = unfinished(place.with_name(path.name), os.getpid())
    try:
        if place.exists() and not place.is_file():
            raise FileExistsError(errno.EEXIST, "it is there already, and is no file")
        place.parent.mkdir(parents=True, exist_ok=True)
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
