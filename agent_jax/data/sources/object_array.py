r"""Reading a `.npy` file that holds a pickled object, as data alone: nothing in the file is ever called.

    \x93NUMPY | version | header {'descr': '|O', 'shape': ()} | pickle of an array of objects

A pickle is a program: unpickling runs whatever function it names. Here a name in it stands for one of the stand-ins
below, which only keep what they are given, and every other name is refused. So dicts, lists, tuples, sets, texts,
numbers and arrays of them are read, and NumPy's own unpickling, which trusts the file, is not used either.
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from agent_jax.data.sources.source import BadDataError

_PLAIN_TYPE = re.compile(r"[<>=|]?([biufUS]\d+|O8?|\?)")


class _Dtype:
    """What a pickled numpy.dtype says."""

    def __init__(self, text: Any, align: Any = False, copy: Any = False):
        del align, copy  # they matter to structured types alone
        if not isinstance(text, str) or not _PLAIN_TYPE.fullmatch(text):
            raise pickle.UnpicklingError(f"an array of type {text!r}, expected plain numbers, texts or objects")
        self._text, self._order = text, "="  # of the bytes: '<', '>', '|' (none), '=' (this machine's)

    def __setstate__(self, state: Any) -> None:
        if any(item is not None for item in state[2:5]):  # subtype, names, fields
            raise pickle.UnpicklingError("an array of a structured type, expected plain numbers, texts or objects")
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"an array with byte order {state[1]!r}")
        self._order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type, in the byte order of the file."""
        plain = np.dtype(self._text)
        if self._order in ("=", "|"):
            return plain
        return plain.newbyteorder("<" if self._order == "<" else ">")


class _Array:
    """What a pickled numpy.ndarray says."""

    def __init__(self, *_: Any) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def array(self) -> np.ndarray:
        """The array itself; its own objects are still stand-ins."""
        if self._state is None:
            raise pickle.UnpicklingError("an array without content")
        _, shape, described, by_columns, content = self._state
        dtype, order = described.dtype, "F" if by_columns else "C"
        size = math.prod(shape)
        if dtype.kind == "O":
            flat = np.empty(len(content), object)
            for place, item in enumerate(content):
                flat[place] = item
        else:
            flat = np.frombuffer(content.encode("latin-1") if isinstance(content, str) else content, dtype)
        if len(flat) != size:
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(flat)} values")
        return flat.reshape(shape, order=order)


class _Scalar:
    """What a pickled NumPy number says."""

    def __init__(self, described: Any, content: Any):
        if not isinstance(described, _Dtype) or described.dtype.kind == "O":
            raise pickle.UnpicklingError("a scalar of no plain type")
        self.number = np.frombuffer(content, described.dtype)[0].item()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a scalar with a state")


# Classes that each have __setstate__: of anything else a pickle could set attributes.
_STAND_INS: dict[str, type] = {"numpy.dtype": _Dtype, "numpy.ndarray": _Array, "builtins.set": set,
                               "builtins.frozenset": frozenset, "__builtin__.set": set}
for _package in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before NumPy 2, and since
    _STAND_INS[f"{_package}._reconstruct"] = _Array
    _STAND_INS[f"{_package}.scalar"] = _Scalar


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The stand-in for a name, whatever it is called; no module is looked into."""
        name = f"{module_name}.{global_name}"
        if name not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {name}, which is neither a plain value nor an array")
        return _STAND_INS[name]


def _resolved(value: Any) -> Any:
    """`value` with arrays in place of their stand-ins."""
    if isinstance(value, _Array):
        array = value.array()
        if array.dtype.kind == "O":
            for place in np.ndindex(array.shape):
                array[place] = _resolved(array[place])
        return array
    if isinstance(value, _Scalar):
        return value.number
    if isinstance(value, dict):
        return {_resolved(key): _resolved(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(_resolved(item) for item in value)
    return value


def _payload(file: IO[bytes]) -> Any:
    """The pickled array behind the header of a .npy file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read(file)
    if not dtype.hasobject:
        raise pickle.UnpicklingError(f"an array of type {dtype}, expected a saved Python object")
    return _Unpickler(file).load()


def read_object_array(path: Path) -> Any:
    """The object that `numpy.save(path, object)` wrote.

    Args:
        path: a .npy file of a 0-dimensional array of type object.

    Returns:
        A dict, list or whatever it is, of plain values and arrays.

    Raises:
        FileNotFoundError: there is no such file.
        BadDataError: it is no such file, it is damaged, or it holds something that is neither a plain value nor an
            array; names it.
    """
    try:
        with path.open("rb") as file:
            array = _resolved(_payload(file))
            if not isinstance(array, np.ndarray) or array.shape != ():
                raise pickle.UnpicklingError("more than one object, expected one")
            return array.item()
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its program happens upon
        raise BadDataError(f"{path}: cannot be read as a saved Python object of plain values and arrays: {error}. It "
                           "may be damaged, or may hold code, which is never run; get the file anew from its "
                           "publisher") from error
