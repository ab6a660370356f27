"""A saved Python object is read as data; whatever would call something is refused by name."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_jax.data.sources.object_array import read_object_array
from agent_jax.data.sources.source import BadDataError


def saved(path: Path, value: Any) -> Path:
    np.save(path, value, allow_pickle=True)
    return path


def test_plain_values_and_arrays_come_back_as_they_were_saved(tmp_path: Path) -> None:
    value = {
        "language": {"ann": ["push the red block", "\N{RIGHTWARDS ARROW}"], "emb": np.arange(6.0).reshape(2, 1, 3)},
        "info": {"indx": [(0, 64), (np.int64(30), np.int64(94))], "episodes": [], "flags": {True, None, 1.5}},
        "columns": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        "texts": np.array(["a", "long"]),
        "objects": np.array([(1, 2), "x"], dtype=object),
    }
    found = read_object_array(saved(tmp_path / "a.npy", value))
    assert found["info"] == value["info"]
    assert found["language"]["ann"] == value["language"]["ann"]
    for key in ("columns", "texts", "objects"):
        assert found[key].dtype == value[key].dtype
        np.testing.assert_array_equal(found[key], value[key])
    np.testing.assert_array_equal(found["language"]["emb"], value["language"]["emb"])


def test_files_of_numpy_1_are_read_too(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", {})
    header = path.read_bytes()[:128]
    payload = pickle.dumps(np.array({"emb": np.arange(3.0), "n": np.int64(7)}, dtype=object), protocol=3)
    assert b"cnumpy._core.multiarray\n" in payload
    path.write_bytes(header + payload.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    found = read_object_array(path)
    assert found["emb"].tolist() == [0, 1, 2]
    assert found["n"] == 7


class Harmful:
    """Unpickled by pickle itself, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_what_would_call_something_is_refused_by_name_and_not_called(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", {"language": Harmful(tmp_path / "made")})
    with pytest.raises(BadDataError, match=r"a\.npy: .*names posix\.mkdir"):
        read_object_array(path)
    assert not (tmp_path / "made").exists()
    assert np.load(path, allow_pickle=True) is not None  # the file does what it is said to do
    assert (tmp_path / "made").is_dir()
    with pytest.raises(BadDataError, match="collections.OrderedDict"):
        read_object_array(saved(path, OrderedDict(a=1)))


def test_a_pickle_cannot_change_the_reader_itself(tmp_path: Path) -> None:
    header = saved(tmp_path / "a.npy", {}).read_bytes()[:128]
    core = "numpy.core.multiarray"
    for name in ("numpy\ndtype", "numpy\nndarray", f"{core}\n_reconstruct", f"{core}\nscalar"):
        # GLOBAL name; the state (None, {"left": 1}), which means setattr(name, "left", 1); BUILD; STOP
        (tmp_path / "a.npy").write_bytes(header + f"c{name}\n".encode() + b"N}X\x04\x00\x00\x00leftK\x01s\x86b.")
        with pytest.raises(BadDataError, match="__setstate__"):
            read_object_array(tmp_path / "a.npy")


@pytest.mark.parametrize(("value", "message"), [
    (np.arange(3), "expected a saved Python object"),
    (np.array([1, "a"], dtype=object), "more than one object"),
    ({"a": np.zeros(2, [("x", "f4")])}, "array of type 'V4'"),
])
def test_other_arrays_are_refused_in_words(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        read_object_array(saved(tmp_path / "a.npy", value))


@pytest.mark.parametrize("length", [5, 60, 140, 200])
def test_a_truncated_file_names_itself(tmp_path: Path, length: int) -> None:
    path = saved(tmp_path / "a.npy", {"emb": np.arange(30.0), "ann": ["a"] * 9})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(BadDataError, match=r"a\.npy: cannot be read"):
        read_object_array(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_object_array(tmp_path / "none.npy")
