"""VisualDL's records: scalars, the settings as hyperparameters, films as images."""

from __future__ import annotations

import io
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visualdl.component.base_component import Record, hparam, scalar
from visualdl.writer.record_writer import RecordWriter

from training.trackers.files import Format
from training.trackers.tracker import Settings

_LENGTH = struct.Struct("<Q")  # before each record
_SHOWN = ("eval/return_mean", "episode/return_mean")  # beside the settings of runs


def _records(*records: Any) -> bytes:
    written = io.BytesIO()
    writer = RecordWriter(written)
    for record in records:
        writer.write(record.SerializeToString())
    return written.getvalue()


def _file(folder: Path) -> Path:
    """The newest file, which a run goes on in: VisualDL shows no other of a folder."""
    files = sorted(folder.glob("vdlrecords.*.log"))
    if not files:
        return folder / f"vdlrecords.{int(time.time()):010d}.log"
    written = files[-1].read_bytes()
    whole = 0  # bytes of whole records: the run may have been killed while it wrote the last one
    while whole + _LENGTH.size <= len(written):
        end = whole + _LENGTH.size + _LENGTH.unpack_from(written, whole)[0]
        if end > len(written):
            break
        whole = end
    os.truncate(files[-1], whole)
    return files[-1]


def _now() -> int:
    return round(time.time() * 1000)


def _begin(settings: Settings) -> bytes:
    return _records(hparam("settings", settings, _SHOWN, _now()))


def _scalars(values: Mapping[str, float], step: int) -> bytes:
    now = _now()
    return _records(*(scalar(tag, float(value), step, now) for tag, value in values.items()))


def _gif(gif: bytes, step: int) -> bytes:
    image = Record.Image(encoded_image_string=gif)
    value = Record.Value(id=step, tag="eval/film", timestamp=_now(), image=image)
    return _records(Record(values=[value]))


VISUALDL = Format(
    file=_file,
    page=lambda folder: f"visualdl --logdir {folder} --language en",
    begin=_begin,
    scalars=_scalars,
    gif=_gif,
)
