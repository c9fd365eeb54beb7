"""The array format of messages: a JSON header, then the arrays' bytes, 64-byte aligned.

    8 bytes   magic and version, b"DPPOwir2"
    4 bytes   length of the header, little endian
    4 bytes   CRC-32C of everything else behind the magic, little endian
    header    UTF-8 JSON: {"meta": {...}, "arrays": [[name, dtype, shape, offset], ...]}
    data      from the next multiple of 64: each array in C order at its offset

The data may be compressed by zstd as a whole; the header then has its size before, "zstd": bytes.
The CRC is that of the compressed bytes, so that nothing is decompressed before it is known to be whole.

No message of this format is ever unpickled, and arrays that are not compressed are read in place.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
from crc32c import crc32c

MAGIC = b"DPPOwir2"
# bytes of compressed data once they are decompressed, unless the reader knows better
LARGEST = 2**31
_ALIGN = 64
_LENGTHS = struct.Struct("<LL")  # of the header; the CRC
_PREFIX = len(MAGIC) + _LENGTHS.size
_ZSTD_LEVEL = 1
# bool, integers, floats: nothing that could run code
_DTYPE = re.compile(r"\|b1|[<>|][iu][1248]|[<>][f](2|4|8|16)")


class WireError(ValueError):
    """Bytes that are not a message of this format."""


def aligned(size: int) -> int:
    """The next multiple of 64: where the next array begins after `size` bytes."""
    return -(-size // _ALIGN) * _ALIGN


def pack(
    meta: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
    compress: bool = False,
) -> bytes:
    """A message of `meta` (what JSON can hold) and named arrays.

    Args:
        compress: compress the arrays. They are smaller then, and cannot be read in place.
    """
    arrays = arrays or {}
    rows, size = [], 0
    for name, array in arrays.items():
        rows.append([name, array.dtype.str, list(array.shape), size])
        size += aligned(array.nbytes)
    header = {"meta": dict(meta), "arrays": rows}
    data = [part for array in arrays.values() for part in _padded(array)]
    if compress:
        import zstandard

        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        data = [compressor.compress(b"".join(data))]
        header["zstd"] = size
    text = json.dumps(header).encode()
    length = len(text).to_bytes(4, "little")
    begin = _PREFIX + len(text)
    parts = [text, bytes(aligned(begin) - begin), *data]
    # the arrays are copied once, as the message cannot be changed: the CRC comes before
    checksum = reduce(lambda crc, part: crc32c(part, crc), parts, crc32c(length))
    return b"".join((MAGIC, length, checksum.to_bytes(4, "little"), *parts))


def _padded(array: np.ndarray) -> tuple[memoryview, bytes]:
    """The bytes of an array in C order, and those up to where the next one begins."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return data, bytes(aligned(len(data)) - len(data))


def _checksum(message: memoryview) -> int:
    length = message[len(MAGIC) : len(MAGIC) + 4]
    return crc32c(message[_PREFIX:], crc32c(length))


def unpack(
    message: bytes | memoryview, verify: bool = True, largest: int = LARGEST
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The `meta` and the arrays of a message, the arrays as read-only views of it.

    Args:
        verify: compare the CRC, which takes some 0.04 ms for a MB. Without it the message may stand at the
            beginning of a larger block, such as memory that is shared with the process that wrote it.
        largest: bytes that compressed arrays may have once they are decompressed.

    Raises:
        WireError: where the bytes are not a message of this format.
    """
    view = memoryview(message)
    if len(view) < _PREFIX or bytes(view[: len(MAGIC)]) != MAGIC:
        raise WireError(f"not a message: it begins with {bytes(view[:8])!r}, not {MAGIC!r}")
    length, checksum = _LENGTHS.unpack_from(view, len(MAGIC))
    if _PREFIX + length > len(view):
        raise WireError(f"header of {length} bytes in a message of {len(view)}: cut short")
    if verify and _checksum(view) != checksum:
        raise WireError("its checksum does not fit: it is cut short or damaged")
    try:
        header = json.loads(bytes(view[_PREFIX : _PREFIX + length]))
        if not isinstance(header["meta"], dict):
            raise WireError("its meta is no JSON object")
        data = view[aligned(_PREFIX + length) :]
        if "zstd" in header:
            data = _decompressed(data, header["zstd"], largest)
        return header["meta"], _arrays(header["arrays"], data)
    # OverflowError: for a count beyond 64 bits; RecursionError: for JSON that is too deep
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise error if isinstance(error, WireError) else WireError(f"bad header: {error}") from None


def _decompressed(data: memoryview, size: int, largest: int) -> memoryview:
    import zstandard

    try:
        if not 0 <= size <= largest or zstandard.frame_content_size(data) != size:
            raise WireError(f"compressed data of {size} bytes, but at most {largest} are allowed")
        return memoryview(zstandard.ZstdDecompressor().decompress(data))
    except zstandard.ZstdError as error:
        raise WireError(f"its data cannot be decompressed: {error}") from None


def _arrays(rows: Any, data: memoryview) -> dict[str, np.ndarray]:
    """The arrays of a header's rows, as read-only views of the data."""
    arrays = {}
    for name, dtype, shape, offset in rows:
        if not isinstance(name, str):
            raise WireError(f"array name {name!r} is no text")
        if not _DTYPE.fullmatch(dtype) or min(shape, default=0) < 0 or offset < 0:
            raise WireError(f"array {name!r} of dtype {dtype!r}, shape {shape}: not allowed")
        kind, count = np.dtype(dtype), math.prod(shape)
        if offset + count * kind.itemsize > len(data):
            raise WireError(f"array {name!r} lies outside the message: cut short")
        arrays[name] = np.frombuffer(data, kind, count, offset).reshape(shape)
        arrays[name].flags.writeable = False
    return arrays


def refuse_unlike(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    """Compare names, shapes and dtypes with those of the arrays that are wanted.

    Raises:
        WireError: for the first that is missing, or other than it must be.
    """
    for name, array in wanted.items():
        there = arrays.get(name)
        if there is None or (there.shape, there.dtype) != (array.shape, array.dtype):
            found = "missing" if there is None else f"{there.dtype} {there.shape}"
            raise WireError(f"{name!r} is {found}, but must be {array.dtype} {array.shape}")


def prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under longer names, so that several groups fit in one message."""
    return {prefix + name: array for name, array in arrays.items()}


def group(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with the prefix, under their names without it."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
