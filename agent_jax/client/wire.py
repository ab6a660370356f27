"""Messages between client and server: msgpack, with NumPy arrays as maps of dtype, shape and bytes.

    {b"__ndarray__": True, b"data": bytes, b"dtype": "|u1", b"shape": [224, 224, 3]}

The format of arrays and scalars (`__npgeneric__`) is that of openpi's client. Only booleans and numbers are read: a
message cannot name code, and memory is allocated only for bytes that were received.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

PROTOCOL = 1  # in the metadata; raise it for a change that older clients cannot read

# A list or a map with a longer length in its header is refused before memory is allocated. A state of up to 4,096
# numbers can be a list; larger data must be arrays.
MAX_ITEMS = 4096
MAX_DIMENSIONS = 8

_DTYPES = {dtype.str: dtype for dtype in map(np.dtype, (
    "bool", "uint8", "int8", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"))}
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"
_ARRAY_KEYS = {_ARRAY, b"data", b"dtype", b"shape"}
_SCALAR_KEYS = {_SCALAR, b"data", b"dtype"}


def pack(message: Mapping[str, Any]) -> bytes:
    """Encode a message of strings, numbers, lists, maps and arrays.

    Raises:
        ValueError: it contains something else, e.g. an array of objects.
    """
    try:
        packed = msgpack.packb(message, default=_plain)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"message: {error}; expected strings, numbers, lists, maps and arrays of numbers") from None
    if packed is None:  # only with autoreset=False
        raise AssertionError("msgpack returned nothing")
    return packed


def unpack(content: bytes) -> dict[str, Any]:
    """Decode a message; its arrays are read-only views of the bytes.

    Raises:
        ValueError: not msgpack, not a map, an array of another dtype or with bytes that do not fit its shape, a length
            beyond `MAX_ITEMS`.
    """
    try:
        message = msgpack.unpackb(content, object_hook=_restored, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS)
    except (ValueError, msgpack.UnpackException) as error:  # UnicodeDecodeError and ExtraData are ValueErrors
        raise ValueError(f"message of {len(content)} bytes: {_reason(error)}; expected one msgpack map") from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ValueError(f"message of {len(content)} bytes: found {type(message).__name__}, expected a msgpack map "
                         "with text keys")
    return message


def _reason(error: Exception) -> str:
    return str(error) or {"StackError": "nested too deeply", "FormatError": "not msgpack"}.get(
        type(error).__name__, "cut off or not msgpack")


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        little = value.dtype.newbyteorder("<") if value.dtype.kind in "biuf" else value.dtype
        if little.str not in _DTYPES:
            raise ValueError(f"array of dtype {value.dtype}: expected one of {', '.join(map(str, _DTYPES.values()))}")
        if isinstance(value, np.generic):
            return {_SCALAR: True, b"data": value.item(), b"dtype": little.str}
        data = np.ascontiguousarray(value, little)
        return {_ARRAY: True, b"data": data.tobytes(), b"dtype": little.str, b"shape": list(value.shape)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"found a {type(value).__name__}")


def _restored(found: dict[Any, Any]) -> Any:
    if _ARRAY in found:
        return _array(found)
    if _SCALAR in found:
        dtype, value = _dtype(found, _SCALAR_KEYS), found[b"data"]
        if not isinstance(value, (bool, int, float)):
            raise ValueError(f"scalar: found data of {type(value).__name__}, expected a number")
        try:
            return dtype.type(value)
        except (OverflowError, ValueError):
            raise ValueError(f"scalar: {value} does not fit {dtype}") from None
    return found


def _array(found: dict[Any, Any]) -> np.ndarray:
    dtype, data, shape = _dtype(found, _ARRAY_KEYS), found[b"data"], found[b"shape"]
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(
            type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"array: expected b'data' as bytes and b'shape' as at most {MAX_DIMENSIONS} whole numbers")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"array: found {len(data)} bytes for {dtype}{shape}, expected "
                         f"{math.prod(shape) * dtype.itemsize}")
    if dtype == np.bool_ and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise ValueError("array: found a byte that is neither 0 nor 1 in an array of bool")
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(found: dict[Any, Any], expected: set[bytes]) -> np.dtype[Any]:
    """The declared dtype; looked up in a table, never parsed."""
    if set(found) != expected:
        raise ValueError(f"array: found the keys {sorted(map(str, found))}, expected {sorted(map(str, expected))}")
    name = found[b"dtype"]
    dtype = _DTYPES.get(name if isinstance(name, str) else "")
    if dtype is None:
        raise ValueError(f"array: found dtype {str(name)[:40]!r}, expected one of {', '.join(_DTYPES)}")
    return dtype
