"""A safetensors file: reads the header at once, and tensors from the mapped file on request.

The safetensors library checks the header: its length, and offsets without gaps or overlaps that fit shapes, dtypes and
the end of the file.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open


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
