"""VisualDL's file of scalars, written record by record.

VisualDL's own writer has a thread that a full disk ends, after which its next caller waits for
ever; it also opens the file anew for each record.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visualdl.component.base_component import scalar
from visualdl.writer.record_writer import RecordWriter

from training.writes import Appended


class Scalars:
    """A run's scalars, in a new file of its folder `visualdl`.

    Raises:
        OSError: where it cannot be opened.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._file = Appended(folder / f"vdlrecords.{int(time.time()):010d}.log")

    def append(self, values: Mapping[str, Any], step: int) -> None:
        """Write the finite numbers among some values.

        Args:
            step: where they belong on the curves.

        Raises:
            OSError: where the disk does not take them.
        """
        records, now = io.BytesIO(), round(time.time() * 1000)
        writer = RecordWriter(records)
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                writer.write(scalar(name, float(value), step, now).SerializeToString())
        self._file.append(records.getvalue())

    def reopen(self) -> None:
        """Go on in a new file, as the folder was made anew.

        Raises:
            OSError: where it cannot be opened.
        """
        self._folder.mkdir(exist_ok=True)
        self._file.reopen()

    def close(self) -> None:
        """Write what waits, and close the file.

        Raises:
            OSError: where the disk does not take it.
        """
        self._file.close()
