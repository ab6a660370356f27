"""Messages between a process and its simulators: JSON and arrays through a pair of pipes.

    length of the head, 4 bytes | head, JSON: {"fields": {...}, "arrays": [[name, dtype, shape], ...]} | their bytes

The arrays are numbers, so nothing that comes out of a pipe is executed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

Message = tuple[dict[str, Any], dict[str, np.ndarray]]  # fields, arrays

_LENGTH = struct.Struct("<I")


def send(stream: BinaryIO, fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a message.

    Args:
        stream: a pipe's end, open for writing bytes.
        fields: JSON.
        arrays: of numbers or booleans, by name.

    Raises:
        ValueError: an array holds something else.
        BrokenPipeError: the other end is gone.
    """
    plain = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    for name, array in plain.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"message: array {name!r} is of {array.dtype}, expected numbers or booleans")
    # ascontiguousarray makes a vector of a scalar.
    shapes = [[name, array.dtype.str, list(np.shape((arrays or {})[name]))] for name, array in plain.items()]
    head = json.dumps({"fields": dict(fields), "arrays": shapes}).encode()
    stream.write(b"".join([_LENGTH.pack(len(head)), head, *(array.tobytes() for array in plain.values())]))
    stream.flush()


def receive(stream: BinaryIO) -> Message:
    """Read a message.

    Raises:
        EOFError: the other end is gone.
    """
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    head = json.loads(_read(stream, length))
    arrays = {}
    for name, kind, shape in head["arrays"]:
        dtype = np.dtype(kind)
        # A copy: what is read is not writable, and policies may keep it.
        flat = np.frombuffer(_read(stream, dtype.itemsize * math.prod(shape)), dtype)
        arrays[name] = flat.reshape(shape).copy()
    return head["fields"], arrays


def _read(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise EOFError("the other end is gone")
    return content
