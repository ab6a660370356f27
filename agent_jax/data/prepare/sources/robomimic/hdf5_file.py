"""Bounded reading of one HDF5 file, which may name no other file and no filter that must be loaded.

Hard and soft links are followed within the file. External links, virtual data sets and external storage are refused:
with them a data set could have any of the user's files read. limits.py bounds the memory, since a data set may declare
2^60 values and store none.
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

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.limits import check_unpacked

# h5py's errors for damaged files, which depend on the part of the library that finds the damage.
_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, AttributeError)
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scale-offset", 32000: "lzf"}
_MAX_LINKS = 8  # along one path
_MAX_TEXT = 16 * 2**20  # bytes of an attribute


class Hdf5File:
    """An opened file; use `open_hdf5`. Paths are names separated by "/", from the root."""

    def __init__(self, path: Path, content: h5py.File):
        self.path, self._content = path, content
        self._size = path.stat().st_size

    def names(self, path: str) -> list[str]:
        """The members of a group, in the file's order; [] if there is no such group.

        Raises:
            BadDataError: the file is damaged, or the path leads outside.
        """
        with self._errors(path):
            found = self._at(path)
            return list(found) if isinstance(found, h5py.Group) else []

    def dataset(self, path: str) -> h5py.Dataset | None:
        """A data set of numbers stored in the file; None if there is none of that name.

        Raises:
            BadDataError: it is stored elsewhere, needs an unknown filter, or its chunks take more memory than
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
        """A text attribute; "" if it is missing, too long or holds something else.

        Raises:
            BadDataError: the file is damaged.
        """
        with self._errors(f"{path}, attribute {name!r}"):
            found = self._at(path)
            if found is None or name not in found.attrs:
                return ""
            about = found.attrs.get_id(name)
            if about.shape != () or about.get_storage_size() > _MAX_TEXT or about.dtype.kind not in "OSU":
                return ""
            value = found.attrs[name]
            value = value.decode("utf-8") if isinstance(value, bytes) else value
            return value if isinstance(value, str) and len(value) <= _MAX_TEXT else ""

    def json(self, path: str, name: str) -> dict[str, Any]:
        """An attribute that holds a JSON object; {} if there is none.

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
        """An attribute that holds one number; None if there is none."""
        with self._errors(f"{path}, attribute {name!r}"):
            found = self._at(path)
            if found is None or name not in found.attrs or found.attrs.get_id(name).shape not in ((), (1,)):
                return None
            value = np.asarray(found.attrs[name])
            return float(value.reshape(-1)[0]) if value.dtype.kind in "biuf" else None

    def texts(self, path: str) -> list[str]:
        """A data set of texts, as those of `mask`; [] if there is none.

        Raises:
            BadDataError: it holds something else, is stored elsewhere or is damaged.
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
        """The object at a path, with links followed within the file; None if there is none."""
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
            if links > _MAX_LINKS:
                raise ValueError(f"more than {_MAX_LINKS} links")
            if link.path.startswith("/"):
                here = self._content
            left += [part for part in link.path.split("/") if part not in ("", ".")][::-1]
        return here

    def _check_storage(self, dataset: h5py.Dataset, path: str, kinds: str = "biuf") -> None:
        """Refuse data that are stored elsewhere, need a filter to be loaded, or have chunks beyond the memory bound."""
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
        """Raise h5py's errors as BadDataError with file and place."""
        try:
            yield
        except BadDataError:
            raise
        except _ERRORS as error:
            raise BadDataError(f"{self.path}, {path}: {str(error) or type(error).__name__}") from error


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5File]:
    """An HDF5 file, open for reading.

    Raises:
        BadDataError: the file is missing, or not a whole HDF5 file.
    """
    try:
        content = h5py.File(path, "r", locking=False)  # locks fail on many shared disks; nothing is written
    except _ERRORS as error:
        raise BadDataError(f"{path}: cannot be read ({error}); expected a whole HDF5 file, copy it again") from error
    with content:
        yield Hdf5File(path, content)
