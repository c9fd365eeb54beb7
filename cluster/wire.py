"""The array format of messages: a JSON header, then the arrays' bytes, 64-byte aligned.

    8 bytes   magic and version, b"DPPOwir1"
    8 bytes   length of the header, little endian
    header    UTF-8 JSON: {"meta": {...}, "arrays": [[name, dtype, shape, offset], ...]}
    data      from the next multiple of 64: each array in C order at its offset

No message of this format is ever unpickled, and arrays are read in place.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

MAGIC = b"DPPOwir1"
_ALIGN = 64
_PREFIX = len(MAGIC) + 8
# bool, integers, floats: nothing that could run code
_DTYPE = re.compile(r"\|b1|[<>|][iu][1248]|[<>][f](2|4|8|16)")


class WireError(ValueError):
    """Bytes that are not a message of this format."""


def aligned(size: int) -> int:
    """The next multiple of 64: where the next array begins after `size` bytes."""
    return -(-size // _ALIGN) * _ALIGN


def pack(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """A message of `meta` (what JSON can hold) and named arrays."""
    arrays = arrays or {}
    rows, size = [], 0
    for name, array in arrays.items():
        rows.append([name, array.dtype.str, list(array.shape), size])
        size += aligned(array.nbytes)
    header = json.dumps({"meta": dict(meta), "arrays": rows}).encode()
    start = aligned(_PREFIX + len(header))
    message = bytearray(start + size)
    message[: len(MAGIC)] = MAGIC
    struct.pack_into("<Q", message, len(MAGIC), len(header))
    message[_PREFIX : _PREFIX + len(header)] = header
    for (_, _, _, offset), array in zip(rows, arrays.values(), strict=True):
        view = np.frombuffer(message, array.dtype, array.size, start + offset)
        view.reshape(array.shape)[...] = array
    return bytes(message)


def unpack(message: bytes | memoryview) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The `meta` and the arrays of a message, the arrays as read-only views of it.

    Raises:
        WireError: where the bytes are not a message of this format.
    """
    if len(message) < _PREFIX or bytes(message[: len(MAGIC)]) != MAGIC:
        raise WireError(f"not a message: it begins with {bytes(message[:8])!r}, not {MAGIC!r}")
    (length,) = struct.unpack_from("<Q", message, len(MAGIC))
    start = aligned(_PREFIX + length)
    if _PREFIX + length > len(message):
        raise WireError(f"header of {length} bytes in a message of {len(message)}: cut short")
    try:
        header = json.loads(bytes(message[_PREFIX : _PREFIX + length]))
        arrays = {}
        for name, dtype, shape, offset in header["arrays"]:
            if not isinstance(name, str):
                raise WireError(f"array name {name!r} is no text")
            if not _DTYPE.fullmatch(dtype) or min(shape, default=0) < 0 or offset < 0:
                raise WireError(f"array {name!r} of dtype {dtype!r}, shape {shape}: not allowed")
            kind, count = np.dtype(dtype), math.prod(shape)
            if start + offset + count * kind.itemsize > len(message):
                raise WireError(f"array {name!r} lies outside the message: cut short")
            arrays[name] = np.frombuffer(message, kind, count, start + offset).reshape(shape)
            arrays[name].flags.writeable = False
        if not isinstance(header["meta"], dict):
            raise WireError("its meta is no JSON object")
        return header["meta"], arrays
    # OverflowError: for a count beyond 64 bits; RecursionError: for JSON that is too deep
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise error if isinstance(error, WireError) else WireError(f"bad header: {error}") from None


def prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under longer names, so that several groups fit in one message."""
    return {prefix + name: array for name, array in arrays.items()}


def group(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with the prefix, under their names without it."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
