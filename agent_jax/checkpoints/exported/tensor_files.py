"""Files of tensors: what is read from any kind of them, checks, and safetensors.

Headers are read at once, tensors on request. The safetensors library checks the header: its length, and offsets without
gaps or overlaps that fit shapes, dtypes and the end of the file.
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

FLOATS = ("F32", "F16", "BF16", "F64")  # dtypes of parameters; position_ids are I64
LISTED = 20  # mismatches that an error lists


class TensorFile(Protocol):
    """An opened file of tensors."""

    path: pathlib.Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]  # as safetensors names them: F32, BF16, I64, ...

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A floating tensor, or some of its rows, in f32 on the host."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def mismatches(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str],
               expected: Mapping[str, tuple[int, ...]], left_out: Collection[str] = ()) -> list[str]:
    """The tensors that are missing, unknown, or of another shape or dtype, as lines; empty if all fit."""
    lines = {
        "missing": [f"{name} {list(expected[name])}" for name in expected if name not in shapes],
        "unknown": [f"{name} {list(shapes[name])}" for name in shapes if name not in expected and name not in left_out],
        "another shape": [f"{name}: found {list(shapes[name])}, expected {list(expected[name])}"
                          for name in expected if name in shapes and shapes[name] != expected[name]],
        "another type": [f"{name}: found {dtypes[name]}, expected one of {', '.join(FLOATS)}"
                         for name in expected if name in shapes and dtypes[name] not in FLOATS],
    }
    return [f"{kind}: {line}" for kind, listed in lines.items() for line in first_lines(listed)]


def first_lines(lines: list[str]) -> list[str]:
    """The first lines of a long list, and the number of the others."""
    return lines[:LISTED] + ([f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else [])


def read_finite(file: TensorFile, name: str, rows: slice | None = None) -> np.ndarray:
    """As `file.read`.

    Raises:
        ValueError: a value is NaN or infinite; names file and tensor, and how many there are.
    """
    array = file.read(name, rows)
    if not (finite := np.isfinite(array)).all():
        bad, place = array.size - np.count_nonzero(finite), np.argwhere(~finite)[0].tolist()
        raise ValueError(f"{file.path}: {name} {list(file.shapes[name])}: {bad:,} of the "
                         f"{array.size:,} values to use are NaN or infinite, the first at {place}; copy or "
                         "download the file again, or use weights of a run that did not diverge")
    return array


class SafetensorsFile:
    """Tensors by name; a context manager, which unmaps the file."""

    def __init__(self, path: pathlib.Path):
        """Open `path` and read its header.

        Raises:
            ValueError: the file is truncated, or its header is wrong.
        """
        self.path = path
        try:
            self._file: Any = safe_open(path, framework="numpy")
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged or not a safetensors file, {path.stat().st_size:,} bytes ({error}); "
                             "copy or download it again") from error
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 - no mapping
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self.dtypes: dict[str, str] = {name: part.get_dtype() for name, part in slices.items()}

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A floating tensor, or some of its rows, in f32 on the host."""
        array = self._file.get_tensor(name) if rows is None else self._file.get_slice(name)[rows]
        return np.asarray(array).astype(np.float32, copy=False)

    def close(self) -> None:
        """Unmap the file."""
        self._file.__exit__(None, None, None)
