"""NumPy files of plain numbers; headers are checked against file sizes before anything is unpacked.

    .npy    magic | header {descr, fortran_order, shape} | values         ends where the header says
    .npz    zip of NAME.npy                                               each one a member

A header that declares 10^13 numbers, or a member that unpacks to gigabytes, is refused by the header and the zip
directory alone. limits.py bounds the memory.
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

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.limits import check_unpacked

# NumPy parses a header as a Python literal, so a damaged one raises the errors of Python's parser.
HEADER_ERRORS = (ValueError, TypeError, SyntaxError, EOFError, OverflowError, RecursionError, MemoryError, KeyError,
                 tokenize.TokenError)
_FILE_ERRORS = (OSError, *HEADER_ERRORS, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)
_MAX_HEADER = 4096  # bytes


class Header(NamedTuple):
    """The header of a .npy file."""

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

    def member(self, name: str) -> Member:
        """Shape and type of an array, from its header alone.

        Raises:
            BadDataError: the file has no member of that name, or it is not an array.
        """
        if name not in self._entries:
            raise BadDataError(f"{self._path}: has no {name!r}; it has {', '.join(sorted(self._entries))[:500]}")
        with _errors(f"{self._path}, array {name!r}"), self._archive.open(self._entries[name]) as stream:
            return Member(name, read_header(stream), self._entries[name])

    def read(self, member: Member) -> np.ndarray:
        """The array.

        Raises:
            BadDataError: its header and its size disagree, it is damaged, or it takes more memory than limits.py
                allows.
        """
        where = f"{self._path}, array {member.name!r}"
        with _errors(where):
            check_unpacked(member.entry.file_size, member.entry.compress_size, where)
            with self._archive.open(member.entry) as stream:
                return _values(stream, member.entry.file_size)


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """The arrays of a .npz file, each read on demand.

    Raises:
        BadDataError: the file is missing or not a whole .npz file.
    """
    with _errors(str(path)):
        archive = zipfile.ZipFile(path)
    with archive:
        yield NpzFile(path, archive)


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file of plain numbers or texts.

    Raises:
        BadDataError: the file is damaged, holds objects, or is not a .npy file.
    """
    with _errors(str(path), "a whole .npy file"), path.open("rb") as stream:
        return _values(stream, path.stat().st_size)


def read_header(stream: Any) -> Header:
    """The header of a .npy file; leaves the stream behind it. Raises one of HEADER_ERRORS."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"found the .npy format {version}, expected (1, 0) or (2, 0)")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return Header(*read(stream, max_header_size=_MAX_HEADER))


def _values(stream: Any, size: int) -> np.ndarray:
    """The array of a stream of `size` bytes, header included."""
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


@contextlib.contextmanager
def _errors(where: str, expected: str = "a whole .npz file") -> Iterator[None]:
    """Raise what reading a file raises as BadDataError."""
    try:
        yield
    except _FILE_ERRORS as error:
        raise BadDataError(f"{where}: cannot be read ({str(error) or type(error).__name__}); expected {expected}, copy "
                           "it again") from error
