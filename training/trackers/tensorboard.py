"""TensorBoard's records: scalars, the settings as text and as hyperparameters, films as images.

A record is `length, its checksum, an Event, its checksum`: see TensorFlow's `record_writer.h`. The
package `tensorboard`, which shows the page, is not needed for this.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping

import crc32c
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, text

from training.trackers.files import Format
from training.trackers.tracker import Settings

_SHOWN = ("eval/return_mean", "episode/return_mean")  # beside the settings of runs


def _record(event: Event) -> bytes:
    event.wall_time = time.time()
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and shifted, since the checksum of data that has checksums means little."""
    checksum = crc32c.crc32c(content)
    rotated = (checksum >> 15 | checksum << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def _begin(settings: Settings) -> bytes:
    table = "|setting|value|\n|---|---|\n" + "".join(f"|{n}|{v}|\n" for n, v in settings.items())
    experiment, session, _ = hparams(settings, dict.fromkeys(_SHOWN, 0.0))
    summaries = [text("settings", table), experiment, session]
    events = [Event(file_version="brain.Event:2"), *(Event(summary=s) for s in summaries)]
    return b"".join(map(_record, events))


def _scalars(values: Mapping[str, float], step: int) -> bytes:
    rows = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
    return _record(Event(step=step, summary=Summary(value=rows)))


def _gif(gif: bytes, step: int) -> bytes:
    width, height = struct.unpack_from("<HH", gif, 6)  # where a GIF has them
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
    value = Summary.Value(tag="eval/film", image=image)
    return _record(Event(step=step, summary=Summary(value=[value])))


TENSORBOARD = Format(
    file=lambda folder: (
        folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    ),
    page=lambda folder: f"tensorboard --logdir {folder}",
    begin=_begin,
    scalars=_scalars,
    gif=_gif,
)
