"""Bounds the tables of an mp4 or mov: FFmpeg makes an entry for each frame that they count.

    moov / trak / mdia / minf / stbl / stsz    frames of one size: a size, and how many
    moov / trak / edts / elst                  stretches to show, each possibly the whole track
    moof / traf / trun                         frames of a fragment, of one size if it lists none

Otherwise a file of 2 kB could take gigabytes before the first packet is read.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from agent_jax.data.limits import check_unpacked

_HOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex", b"udta")
# FFmpeg's index and tables of times, which double as they grow.
_BYTES_PER_FRAME = 64


@dataclasses.dataclass
class _Track:
    """The frame counts in the boxes of one `trak` or `moof`."""

    frames: int = 0
    sound: bool = False
    one_tick: bool = False  # all frames last one tick, as in PCM, of which FFmpeg makes no entries
    edits: int = 1

    @property
    def entries(self) -> int:
        """The number of FFmpeg's entries."""
        return 0 if self.sound and self.one_tick else self.frames * self.edits


def check_tables(path: Path) -> None:
    """Refuse a file whose tables count more frames than memory may hold; files of other kinds pass.

    Raises:
        ValueError: names the file, the sizes and the bound.
    """
    size, tracks = path.stat().st_size, [_Track()]
    with path.open("rb") as file:
        for name, start, stop in _boxes(file, size):
            if name in (b"trak", b"moof"):
                tracks.append(_Track())
            elif name == b"cmov":
                raise ValueError(f"{path}: its header is compressed, which is not supported; write it again by ffmpeg "
                                 "-i IN -c copy OUT.mp4")
            else:
                _count(tracks[-1], name, _numbers(file, start, stop))
    entries = sum(track.entries for track in tracks)
    check_unpacked(entries * _BYTES_PER_FRAME, size, f"{path}: the tables of its header")


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(Name, first byte of the content, end) of all boxes; a box that claims to be longer ends with its container."""
    stack = [(0, size)]
    while stack:
        place, end = stack.pop()
        if place + 8 > end:
            continue
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        start = place + 8
        if length == 1 and place + 16 <= end:
            [length] = struct.unpack(">Q", file.read(8))
            start = place + 16
        stop = end if length == 0 else min(place + max(length, start - place), end)
        yield name, start, stop
        stack.append((stop, end))
        if name in _HOLDERS:
            stack.append((start, stop))


def _numbers(file: BinaryIO, start: int, stop: int) -> list[int]:
    """The first four numbers of a box, padded with zeros; the first holds version and flags."""
    file.seek(start)
    return list(struct.unpack(">4I", file.read(min(stop - start, 16)).ljust(16, b"\0")))


def _count(track: _Track, name: bytes, numbers: list[int]) -> None:
    _, first, second, third = numbers
    if name == b"stsz":
        track.frames = max(track.frames, second)
    elif name == b"trun":
        track.frames += first
    elif name == b"elst":
        track.edits = max(track.edits, first)
    elif name == b"stts":
        track.one_tick = (first, third) == (1, 1)
    elif name == b"hdlr":
        track.sound |= second == int.from_bytes(b"soun", "big")
