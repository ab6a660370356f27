r"""Reads a `.npy` file that holds a pickled object, as data only: no function named in the file is ever called.

    \x93NUMPY | version | header {'descr': '|O', 'shape': ()} | pickle of an array of objects

plain_pickle.py reads it, and accepts only the names that NumPy writes for arrays and numbers: the result consists of
dicts, lists, tuples, sets, texts, numbers and arrays of them. limits.py bounds the memory: three quarters of its bound
for the objects, by the number of opcodes, and one for copies of the file's bytes, since a file can name the same bytes
many times.
"""

from __future__ import annotations

import math
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.limits import MAX_READ_VARIABLE, check_unpacked, max_extra_bytes
from agent_jax.data.prepare.sources.npy_file import HEADER_ERRORS, read_header
from agent_jax.plain_pickle import BYTES_AN_OPCODE, PlainUnpickler, RefusedPickleError, Unfinished, kind_of

_PLAIN_TYPE = re.compile(r"[<>=|]?([biufUS]\d+|O8?|\?)")
_MAX_TYPE = 16  # characters
_MAX_AXES = 32


class _Dtype:
    """A pickled numpy.dtype."""

    def __init__(self, text: Any, *_: Any):
        if not isinstance(text, str) or len(text) > _MAX_TYPE or not _PLAIN_TYPE.fullmatch(text):
            found = repr(text) if isinstance(text, str) and len(text) <= _MAX_TYPE else kind_of(text)
            raise RefusedPickleError(f"an array of type {found}, expected plain numbers, texts or objects")
        self._text, self._order = text, "="  # byte order: '<', '>', '|' (none), '=' (native)

    def set_state(self, state: Any) -> None:
        """Set the byte order; a longer state belongs to a structured type and is refused."""
        if not isinstance(state, tuple) or any(item is not None for item in state[2:5]):  # subtype, names, fields
            raise RefusedPickleError("an array of a structured type, expected plain numbers, texts or objects")
        if state[1] not in ("<", ">", "|", "="):
            raise RefusedPickleError("an array whose bytes have an unknown order")
        self._order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type, in the byte order of the file."""
        plain = np.dtype(self._text)
        if self._order in ("=", "|"):
            return plain
        return plain.newbyteorder("<" if self._order == "<" else ">")


class _Array(Unfinished):
    """A numpy.ndarray whose state follows."""

    def __init__(self, *_: Any):
        pass


class _ArrayUnpickler(PlainUnpickler):
    """Reads plain data and NumPy's arrays and scalars."""

    def __init__(self, file: Any, where: str, packed: int):
        functions = {"numpy.dtype": _Dtype, "numpy.ndarray": None, "builtins.set": self._set,
                     "builtins.frozenset": self._set, "__builtin__.set": self._set}
        for package in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before NumPy 2 and since
            functions |= {f"{package}._reconstruct": _Array, f"{package}.scalar": self._scalar}
        super().__init__(file, functions, max_extra_bytes() * 3 // 4 // BYTES_AN_OPCODE)
        self._where, self._packed, self._copied = where, packed, 0

    def build(self, target: Any, state: Any) -> Any:
        if isinstance(target, _Array):
            return self._array(state)
        if not isinstance(target, _Dtype):
            return super().build(target, state)
        target.set_state(state)
        return target

    def _set(self, items: Any) -> set[Any]:
        if not isinstance(items, list):
            raise RefusedPickleError(f"a set of a {kind_of(items)}, expected a list")
        self._copies(BYTES_AN_OPCODE + 64 * len(items))
        return set(self.check_keys(items, "a set"))

    def _scalar(self, described: Any, content: Any) -> Any:
        if not isinstance(described, _Dtype) or described.dtype.kind == "O":
            raise RefusedPickleError("a scalar of no plain type")
        self._copies(len(content))
        return np.frombuffer(content, described.dtype)[0].item()

    def _array(self, state: Any) -> np.ndarray:
        _, shape, described, by_columns, content = state
        if not isinstance(described, _Dtype) or not isinstance(shape, tuple) or len(shape) > _MAX_AXES:
            raise RefusedPickleError("an array without a valid shape or type")
        dtype, order = described.dtype, "F" if by_columns else "C"
        if dtype.kind == "O":
            if not isinstance(content, list) or any(isinstance(item, Unfinished) for item in content):
                raise RefusedPickleError("an array of objects without a list of them, or one that holds itself")
            self._copies(8 * len(content))
            flat = np.empty(len(content), object)
            for place, item in enumerate(content):
                flat[place] = item
        elif isinstance(content, str):
            self._copies(2 * len(content))
            flat = np.frombuffer(content.encode("latin-1"), dtype)
        else:
            flat = np.frombuffer(content, dtype)
        if len(flat) != math.prod(shape):
            raise RefusedPickleError(f"an array whose shape is not that of its {len(flat):,} values")
        return flat.reshape(shape, order=order)

    def _copies(self, size: int) -> None:
        """Count bytes that are copied out of the file."""
        self._copied += size
        check_unpacked(4 * self._copied, self._packed, f"{self._where}, its arrays")


def read_object_array(path: Path) -> Any:
    """The object that `numpy.save(path, object)` wrote, made of plain values and arrays.

    Raises:
        FileNotFoundError: the file does not exist.
        BadDataError: the file is damaged or of another kind, takes more memory than limits.py allows, or holds
            something that is neither a plain value nor an array; names it.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _, _, dtype = read_header(content)
            if not dtype.hasobject:
                raise RefusedPickleError(f"an array of type {dtype}, expected a saved Python object")
            array = _ArrayUnpickler(content, str(path), len(content)).load()
            if not isinstance(array, np.ndarray) or array.shape != ():
                raise RefusedPickleError("more than one object, expected one")
            return array.item()
    except FileNotFoundError:
        raise
    except (OSError, *HEADER_ERRORS) as error:
        raise BadDataError(f"{path}: cannot be read as a saved Python object of plain values and arrays: {error}. It "
                           "may be damaged, or may hold code, which is never run; get the file again from its "
                           f"publisher. Where it is sound and only large, raise {MAX_READ_VARIABLE}") from error
