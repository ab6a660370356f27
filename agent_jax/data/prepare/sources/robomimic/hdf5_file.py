"""One HDF5 file, read with bounds and within itself: it names no other file, and no filter that must be loaded.

Hard and soft links are followed within the file. External links, virtual data sets and external storage are refused:
they would have any file of the user's read. Memory is bounded by limits.py, for a data set may say that it has 2^60
values and store none.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from agent_jax.data.limits import check_unpacked
from agent_jax.data.prepare.sources.source import BadDataError

# What h5py raises of damaged files, by the part of the library that finds them.
_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError)
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scale-offset", 32000: "lzf"}
_MOST_LINKS = 8  # that one path may follow
_LONGEST_TEXT = 16 * 2**20  # bytes of an attribute


class Hdf5File:
    """An opened file; use `open_hdf5`. Paths are names separated by "/", from the root."""

    def __init__(self, path: Path, content: h5py.File):
        self.path, self._content = path, content
        self._size = path.stat().st_size

    def names(self, path: str) -> list[str]:
        """Of what a group holds, in the file's order; [] where there is no such group.

        Raises:
            BadDataError: the file is damaged, or the path leads outside.
        """
        with self._errors(path):
            found = self._at(path)
            return list(found) if isinstance(found, h5py.Group) else []

    def dataset(self, path: str) -> h5py.Dataset | None:
        """A data set of numbers that lies within the file; None where there is none of that name.

        Raises:
            BadDataError: it lies elsewhere, needs a filter that is not known, or its rows take more memory than
                limits.py allows.
        """
        with self._errors(path):
            found = self._at(path)
            if not isinstance(found, h5py.Dataset):
                return None
            self._check_storage(found, path)
            return found

    def rows(self, path: str, dataset: h5py.Dataset, rows: slice = slice(None)) -> np.ndarray:
        """Rows of a data set.

        Raises:
            BadDataError: they are damaged, or take more memory than limits.py allows.
        """
        with self._errors(path):
            count = len(range(*rows.indices(dataset.shape[0]))) if dataset.shape else 1
            check_unpacked(count * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize, self._size, "its rows")
            return np.asarray(dataset[rows])

    def text(self, path: str, name: str) -> str:
        """An attribute that holds a text; "" where there is none, or it holds something else.

        Raises:
            BadDataError: the file is damaged, or the text is too long.
        """
        with self._errors(f"{path}, attribute {name!r}"):
            found = self._at(path)
            if found is None or name not in found.attrs:
                return ""
            about = found.attrs.get_id(name)
            if about.shape != () or about.get_storage_size() > _LONGEST_TEXT or about.dtype.kind not in "OSU":
                return ""
            value = found.attrs[name]
            value = value.decode("utf-8") if isinstance(value, bytes) else value
            return value if isinstance(value, str) and len(value) <= _LONGEST_TEXT else ""

    def json(self, path: str, name: str) -> dict[str, Any]:
        """An attribute that holds a JSON object; {} where there is none.

        Raises:
            BadDataError: it is not JSON.
        """
        text = self.text(path, name)
        if not text:
            return {}
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadDataError(f"{self.path}, {path}, attribute {name!r}: is not JSON ({error}); expected an object"
                               ) from error
        return content if isinstance(content, dict) else {}

    def number(self, path: str, name: str) -> float | None:
        """An attribute that holds one number; None where there is none."""
        with self._errors(f"{path}, attribute {name!r}"):
            found = self._at(path)
            if found is None or name not in found.attrs or found.attrs.get_id(name).shape not in ((), (1,)):
                return None
            value = np.asarray(found.attrs[name])
            return float(value.reshape(-1)[0]) if value.dtype.kind in "biuf" else None

    def texts(self, path: str) -> list[str]:
        """A data set of texts, as those of `mask`; [] where there is none.

        Raises:
            BadDataError: it holds something else, lies elsewhere or is damaged.
        """
        with self._errors(path):
            found = self._at(path)
            if not isinstance(found, h5py.Dataset):
                return []
            self._check_storage(found, path, kinds="SO")
            if len(found.shape) != 1:
                raise ValueError(f"has shape {list(found.shape)}, expected a list of texts")
            check_unpacked(found.shape[0] * (64 + found.dtype.itemsize), self._size, "its texts")
            return [text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in found[:].tolist()]

    def _at(self, path: str) -> Any:
        """The object of a path, links followed within the file alone; None where there is none."""
        left, links = [name for name in path.split("/") if name][::-1], 0
        here: Any = self._content
        while left:
            name = left.pop()
            link = here.get(name, getlink=True) if isinstance(here, h5py.Group) else None
            if link is None:
                return None
            if isinstance(link, h5py.ExternalLink):
                raise ValueError(f"{name!r} is a link to the file {link.filename!r}, expected the data themselves")
            if not isinstance(link, h5py.SoftLink):
                here = here[name]
                continue
            links += 1
            if links > _MOST_LINKS:
                raise ValueError(f"more than {_MOST_LINKS} links")
            if link.path.startswith("/"):
                here = self._content
            left += [part for part in link.path.split("/") if part not in ("", ".")][::-1]
        return here

    def _check_storage(self, dataset: h5py.Dataset, path: str, kinds: str = "biuf") -> None:
        """Refuse data that lie elsewhere, or that reading them would load something or take all memory."""
        if dataset.shape is None:
            raise ValueError("holds nothing, expected numbers")
        if dataset.is_virtual or dataset.external:
            raise ValueError("keeps its data in other files, expected them in this one; copy them, as with h5repack")
        if dataset.dtype.kind not in kinds:
            raise ValueError(f"holds {dataset.dtype}, expected {'numbers' if kinds == 'biuf' else 'texts'}")
        created = dataset.id.get_create_plist()
        for place in range(created.get_nfilters()):
            number = created.get_filter(place)[0]
            if number not in _FILTERS:
                raise ValueError(f"is compressed by filter {number}, expected one of {', '.join(_FILTERS.values())}; "
                                 "write it again, as with h5repack -f GZIP=4")
        if dataset.chunks:
            check_unpacked(math.prod(dataset.chunks) * dataset.dtype.itemsize, self._size, f"{path}, a chunk")

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """What h5py raises, as the one error with file and place."""
        try:
            yield
        except BadDataError:
            raise
        except _ERRORS as error:
            raise BadDataError(f"{self.path}, {path}: {error or type(error).__name__}") from error


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5File]:
    """An HDF5 file, opened to be read.

    Raises:
        BadDataError: it is missing, or no whole HDF5 file.
    """
    try:
        content = h5py.File(path, "r", locking=False)  # locks fail on many shared disks, and nothing is written
    except _ERRORS as error:
        raise BadDataError(f"{path}: cannot be read ({error}); expected a whole HDF5 file, copy it again") from error
    with content:
        yield Hdf5File(path, content)
