"""Files that are there whole, or as they were before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path


def unfinished(path: Path) -> Path:
    """Where a file is written until it is whole: beside it, with its ending."""
    return path.with_name(f".{path.stem}.unfinished{path.suffix}")


@contextlib.contextmanager
def replacing(path: Path, refused: Callable[[OSError], Exception]) -> Iterator[Path]:
    """A new file to write in this block, which then takes the place of `path`; not where the block raises.

    Args:
        refused: the error for the user, where the folder does not take the file.
    """
    part = unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
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
