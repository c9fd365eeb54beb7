"""Files that are there whole, or as they were before."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def unfinished(path: Path) -> Path:
    """Where a file is written until it is whole: beside it, with its ending."""
    return path.with_name(f".{path.stem[:60]}.unfinished{path.suffix}")


@contextlib.contextmanager
def replacing(path: Path, refused: Callable[[OSError], Exception]) -> Iterator[Path]:
    """A new file to write in this block, which then takes the place of `path`; not where the block raises.

    A link stays, and what it leads to is replaced; a file's mode stays too.

    Args:
        refused: the error for the user, where the folder does not take the file.
    """
    given, path = path, path.resolve()
    part = unfinished(path.with_suffix(given.suffix))  # which tells its writer what it is
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        if path.exists():
            shutil.copymode(path, part)
    except OSError as error:
        raise refused(error) from None
    try:
        yield part
        try:
            part.replace(path)
        except OSError as error:
            raise refused(error) from None
    finally:
        part.unlink(missing_ok=True)
