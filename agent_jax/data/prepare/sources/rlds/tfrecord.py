"""TFRecord files, read without TensorFlow.

    record:  uint64 length | uint32 masked crc32c of it | length bytes | uint32 masked crc32c of them    (little-endian)

The mask (tensorflow/core/lib/hash/crc32c.h) rotates the checksum and adds a constant: the plain checksum is weak for
data that contain checksums.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import google_crc32c

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


def masked_crc32c(content: bytes) -> int:
    """The checksum in the form that TFRecord files store."""
    crc = google_crc32c.value(content)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def record_offsets(path: Path) -> tuple[list[int], str]:
    """The offsets of the records of a file, found from their lengths alone.

    Returns:
        The offsets of all records up to the end of the file or to the first damaged length, and a description of the
        damage; "" if there is none.
    """
    size = os.path.getsize(path)
    offsets: list[int] = []
    with path.open("rb") as file:
        at = 0
        while at < size:
            file.seek(at)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return offsets, f"the file ends within the header of record {len(offsets)}; copy it again"
            length, crc = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != crc:
                return offsets, (f"the length of record {len(offsets)} is damaged (crc32c differs), so neither this "
                                 "record nor the following ones can be read; copy the file again")
            following = at + _HEADER.size + length + _FOOTER.size
            if following > size:
                return offsets, (f"the file ends within record {len(offsets)}, which needs {following:,} bytes of the "
                                f"file's {size:,}; copy it again")
            offsets.append(at)
            at = following
    return offsets, ""


def read_record(path: Path, offset: int) -> bytes:
    """Read the record that begins at `offset`.

    Raises:
        ValueError: its checksum differs.
    """
    with path.open("rb") as file:
        file.seek(offset)
        length, _ = _HEADER.unpack(file.read(_HEADER.size))
        content = file.read(length)
        (crc,) = _FOOTER.unpack(file.read(_FOOTER.size))
    if masked_crc32c(content) != crc:
        raise ValueError(f"the content is damaged (crc32c differs, {length:,} bytes)")
    return content
