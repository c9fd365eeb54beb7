"""What a run does where its disk takes no more: it goes on, says so once, and tries again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from common.files import CannotWrite

_ROOM = 16 * 2**20  # bytes that wait in memory for a disk, at most


class Writes:
    """The writes of a run that fail now, and what the user has been told of them.

    Args:
        say: prints a line.

    Attributes:
        failing: the causes, in the system's words, by what cannot be written.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self.failing: dict[str, str] = {}

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Write in this context. A failure is noted, and said where its cause is new."""
        try:
            yield
        except (OSError, CannotWrite) as error:
            cause = error.reason if isinstance(error, CannotWrite) else error.strerror or str(error)
            is_known = cause in self.failing.values()
            self.failing[what] = cause
            if not is_known:
                told = isinstance(error, CannotWrite)
                sentence = str(error) if told else f"{what} cannot be written: {cause}"
                self._say(f"{sentence}. Training goes on, and this is tried again")
        else:
            if self.failing.pop(what, None) is not None and not self.failing:
                self._say(f"{what} is written again, and so is all else")


class Appended:
    """A file that records are appended to. What the disk does not take waits for the next time.

    Args:
        path: of the file.

    Raises:
        OSError: where it cannot be opened.
    """

    def __init__(self, path: Path):
        self._path = path
        self._waiting = b""
        self._file = self._open()

    def _open(self):
        return open(self._path, "ab", buffering=0)

    def reopen(self) -> None:
        """Go on in a new file at the place of the old one.

        Raises:
            OSError: where it cannot be opened.
        """
        opened = self._open()
        self._file.close()
        self._file = opened

    def append(self, record: bytes) -> None:
        """Write a record, after those that wait.

        Raises:
            OSError: where the disk does not take all of it. A record for which there is no room
                in memory either is left out.
        """
        if len(self._waiting) + len(record) <= _ROOM:
            self._waiting += record
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Write what waits, and close the file.

        Raises:
            OSError: where the disk does not take it.
        """
        try:
            self.append(b"")
        finally:
            self._file.close()
