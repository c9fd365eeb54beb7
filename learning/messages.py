"""What trainers tell one another: arrays, and values that JSON can hold. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load as parse_arrays
from safetensors.numpy import save as format_arrays

from learning.undo import State

HEAD = 8  # bytes of a message that say how long it is


def pack(arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> bytes:
    """A message in bytes: its length, that of the values, the values in JSON, and the arrays in safetensors."""
    head = json.dumps(values).encode()
    body = (
        format_arrays({k: np.asarray(a, order="C") for k, a in arrays.items()}) if arrays else b""
    )
    content = len(head).to_bytes(HEAD, "little") + head + body
    return len(content).to_bytes(HEAD, "little") + content


def unpack(message: bytes) -> State:
    """The arrays and the values of a message that `pack` made."""
    begins = 2 * HEAD + int.from_bytes(message[HEAD : 2 * HEAD], "little")
    arrays, body = {}, message[begins:]
    if body:
        arrays = parse_arrays(body)
    return arrays, json.loads(message[2 * HEAD : begins])
