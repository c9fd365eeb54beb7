"""Compile Python to machine code with numba, and keep that code for the next process."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba
from numba.core import config

P = ParamSpec("P")
R = TypeVar("R")


def njit(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator as numba's own, whose code is kept on disk wherever there is a place for it.

    numba keeps it beside the source, or below the user's home. Neither can be written in a container that
    runs as a user without a home, so there it is kept in a folder of this user's own for temporary files.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # numba has found no place
            return numba.njit(cache=_keep_elsewhere(), **options)(function)

    return decorate


def _keep_elsewhere() -> bool:
    """Have numba keep code among temporary files; return whether it can."""
    try:
        folder = Path(tempfile.gettempdir()) / f"numba_{os.geteuid()}"
        folder.mkdir(0o700, exist_ok=True)
        refuse_others(folder)
    except OSError:
        return False
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    config.reload_config()
    return True


def refuse_others(folder: Path) -> None:
    """Raise OSError where somebody else can put code into a folder, or has made it, or a link in its place.

    In the folder above others may write, as in /tmp, if they cannot put another in this one's place.
    """
    found, above = folder.lstat(), folder.parent.stat()
    others = stat.S_IWGRP | stat.S_IWOTH
    replaced = above.st_mode & others and not above.st_mode & stat.S_ISVTX
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not own or found.st_mode & others or replaced:
        raise PermissionError(f"{folder} can be written by others")
