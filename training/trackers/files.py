"""Trackers that read files: records are appended, so that a full disk loses none and stops nothing.

The writers that VisualDL and tensorboardX bring have a thread each, which a full disk ends; their next
caller waits for ever, or its records are lost.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from training.film import as_gif
from training.trackers.tracker import Settings
from training.writes import Appended


class Format(NamedTuple):
    """How a tracker's files are written. Each function returns whole records.

    `file` is the file of a start, in the tracker's folder; `page` the command that shows all runs of a
    folder, whose name is quoted for a shell. `begin` has the run's settings as numbers and text, `gif`
    a film as a moving image.
    """

    file: Callable[[Path], Path]
    page: Callable[[str], str]
    begin: Callable[[Settings], bytes]
    scalars: Callable[[Mapping[str, float], int], bytes]
    gif: Callable[[bytes, int], bytes]


class FileTracker:
    """A run's records, in a folder with the tracker's name.

    Args:
        name: of the tracker.
        run_dir: the run's folder.
        settings: the run's.
        format: how the records are written.

    Raises:
        OSError: where the file cannot be opened.
    """

    def __init__(self, name: str, run_dir: Path, settings: Settings, format: Format):
        self.name, self.page = name, format.page(shlex.quote(str(run_dir.parent)))
        self._folder, self._format = run_dir / name, format
        given = {name: value for name, value in settings.items() if value is not None}
        self._begin = format.begin(
            {n: v if type(v) in (int, float, str) else str(v) for n, v in given.items()}
        )
        self._folder.mkdir(exist_ok=True)
        path = format.file(self._folder)
        self._is_begun = path.exists() and path.stat().st_size > 0
        self._file = Appended(path)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._append(self._format.scalars(values, step))

    def film(self, path: Path, step: int) -> None:
        self._append(self._format.gif(as_gif(path), step))

    def reopen(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._file.reopen()
        self._is_begun = False

    def close(self) -> None:
        self._file.close()

    def _append(self, records: bytes) -> None:
        begin, self._is_begun = b"" if self._is_begun else self._begin, True
        self._file.append(begin + records)
