"""NumPy's files of plain numbers, whose headers are held against their sizes before anything is unpacked.

    .npy    magic | header {descr, fortran_order, shape} | values         ends where the header says
    .npz    zip of NAME.npy                                               each one a member

A header of 10^13 numbers, or a member that unpacks to gigabytes, is refused by what the header and the archive's
directory say; memory is bounded by limits.py.
"""

from __future__ import annotations

import contextlib
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agent_jax.data.limits import check_unpacked
from agent_jax.data.prepare.sources.source import BadDataError

# NumPy parses a header as a Python literal, and says what Python's parser says of a damaged one.
HEADER_ERRORS = (ValueError, TypeError, SyntaxError, EOFError, OverflowError, RecursionError, MemoryError, KeyError,
                 tokenize.TokenError)
_FILE_ERRORS = (OSError, *HEADER_ERRORS, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)
_LONGEST_HEADER = 4096  # bytes


class Header(NamedTuple):
    """What a .npy file says of its values."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]


class Member(NamedTuple):
    """One array of a .npz file, not read yet."""

    name: str
    header: Header
    entry: zipfile.ZipInfo


class NpzFile:
    """The arrays of a .npz file by name; use `open_npz`."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._path, self._archive = path, archive
        self._entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}

    @property
    def names(self) -> list[str]:
        """Of all arrays, sorted."""
        return sorted(self._entries)

    def member(self, name: str) -> Member:
        """Shape and type of an array, from its header alone.

        Raises:
            BadDataError: there is none of that name, or it is no array.
        """
        if name not in self._entries:
            raise BadDataError(f"{self._path}: has no {name!r}; it has {', '.join(self.names)[:500]}")
        try:
            with self._archive.open(self._entries[name]) as stream:
                return Member(name, read_header(stream), self._entries[name])
        except _FILE_ERRORS as error:
            raise BadDataError(_damaged(self._path, f", array {name!r}", error)) from error

    def read(self, member: Member) -> np.ndarray:
        """The array.

        Raises:
            BadDataError: its header and its size disagree, it is damaged, or it takes more memory than limits.py
                allows.
        """
        where = f"{self._path}, array {member.name!r}"
        try:
            check_unpacked(member.entry.file_size, member.entry.compress_size, where)
            with self._archive.open(member.entry) as stream:
                return _values(stream, member.entry.file_size)
        except _FILE_ERRORS as error:
            raise BadDataError(_damaged(self._path, f", array {member.name!r}", error)) from error


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """The arrays of a .npz file, each read when it is asked for.

    Raises:
        BadDataError: the file is missing or no whole .npz file.
    """
    try:
        archive = zipfile.ZipFile(path)
    except _FILE_ERRORS as error:
        raise BadDataError(_damaged(path, "", error)) from error
    with archive:
        yield NpzFile(path, archive)


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file of plain numbers or texts.

    Raises:
        BadDataError: it is damaged, holds objects, or is no .npy file.
    """
    try:
        with path.open("rb") as stream:
            return _values(stream, path.stat().st_size)
    except _FILE_ERRORS as error:
        raise BadDataError(_damaged(path, "", error, "a whole .npy file")) from error


def read_header(stream: Any) -> Header:
    """The header of a .npy file; the stream stands behind it. Raises one of HEADER_ERRORS."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"found the .npy format {version}, expected (1, 0) or (2, 0)")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return Header(*read(stream, max_header_size=_LONGEST_HEADER))


def _values(stream: Any, size: int) -> np.ndarray:
    """The array behind its header, `size` bytes in all."""
    header = read_header(stream)
    if header.dtype.hasobject:
        raise ValueError(f"holds objects ({header.dtype}), expected numbers")
    stated, there = math.prod(header.shape) * header.dtype.itemsize, size - stream.tell()
    if stated != there:
        raise ValueError(f"its header says {header.dtype}{list(header.shape)}, {stated:,} bytes, but {there:,} follow")
    content = stream.read(stated)
    if len(content) != stated:
        raise EOFError(f"{len(content):,} of {stated:,} bytes")
    return np.frombuffer(content, header.dtype).reshape(header.shape, order="F" if header.by_columns else "C")


def _damaged(path: Path, place: str, error: Exception, expected: str = "a whole .npz file") -> str:
    return f"{path}{place}: cannot be read ({error or type(error).__name__}); expected {expected}, copy it again"
