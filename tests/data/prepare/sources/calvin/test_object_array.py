"""A saved Python object is read as data; functions are refused by name."""

from __future__ import annotations

import os
import pickle
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.calvin.object_array import read_object_array


def saved(path: Path, value: Any) -> Path:
    np.save(path, value, allow_pickle=True)
    return path


def test_plain_values_and_arrays_round_trip(tmp_path: Path) -> None:
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


def test_files_of_numpy_1_are_read(tmp_path: Path) -> None:
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


def test_functions_are_refused_and_not_called(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", {"language": Harmful(tmp_path / "made")})
    with pytest.raises(BadDataError, match=r"a\.npy: .*asks for 'posix\.mkdir'"):
        read_object_array(path)
    assert not (tmp_path / "made").exists()
    assert np.load(path, allow_pickle=True) is not None  # the file would call the function
    assert (tmp_path / "made").is_dir()
    with pytest.raises(BadDataError, match="collections.OrderedDict"):
        read_object_array(saved(path, OrderedDict(a=1)))


def test_pickle_cannot_change_the_reader(tmp_path: Path) -> None:
    header = saved(tmp_path / "a.npy", {}).read_bytes()[:128]
    core = "numpy.core.multiarray"
    for name in ("numpy\ndtype", "numpy\nndarray", f"{core}\n_reconstruct", f"{core}\nscalar"):
        # GLOBAL name; the state (None, {"left": 1}), which means setattr(name, "left", 1); BUILD; STOP
        (tmp_path / "a.npy").write_bytes(header + f"c{name}\n".encode() + b"N}X\x04\x00\x00\x00leftK\x01s\x86b.")
        with pytest.raises(BadDataError, match="sets the state of a numpy"):
            read_object_array(tmp_path / "a.npy")


@pytest.mark.parametrize(("value", "message"), [
    (np.arange(3), "expected a saved Python object"),
    (np.array([1, "a"], dtype=object), "more than one object"),
    ({"a": np.zeros(2, [("x", "f4")])}, "array of type 'V4'"),
])
def test_other_arrays_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        read_object_array(saved(tmp_path / "a.npy", value))


@pytest.mark.parametrize("length", [5, 60, 140, 200])
def test_truncated_file_is_reported(tmp_path: Path, length: int) -> None:
    path = saved(tmp_path / "a.npy", {"emb": np.arange(30.0), "ann": ["a"] * 9})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(BadDataError, match=r"a\.npy: cannot be read"):
        read_object_array(path)


def test_missing_file_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_object_array(tmp_path / "none.npy")


def test_object_saved_twice_is_one_object(tmp_path: Path) -> None:
    emb = np.arange(4.0)
    found = read_object_array(saved(tmp_path / "a.npy", {"a": emb, "b": emb, "c": [emb]}))
    assert found["a"] is found["b"] is found["c"][0]
    assert found["a"].tolist() == [0, 1, 2, 3]


ONES = b"X\x40\x42\x0f\x00" + b"1" * 1_000_000 + b"q\x00"  # a text of a megabyte, at place 0 of the memo


@pytest.mark.parametrize("bomb", [
    b"\x80\x04Nr\xff\xff\xff\x7f.",  # a place far out in the memo, which pickle makes room for
    b"\x80\x04)" + b"q\x00h\x00h\x00\x86" * 40 + b"}h\x00Ns.",  # a key of 2^40 parts
    b"\x80\x04" + ONES + b"cnumpy.core.multiarray\nscalar\nq\x01cnumpy\ndtype\nX\x08\0\0\0S1000000\x85Rh\x00\x86q\x02"
    + b"(" + b"h\x01h\x02R" * 2000 + b"t.",  # two thousand copies of the megabyte
    b"\x80\x04(" + b"N" * 100_000 + b"l.",
    b"\x80\x04" + b"](" + b"N" * 100_000 + b"eq\x00cbuiltins\nset\nq\x01h\x00\x85q\x02(" + b"h\x01h\x02R" * 900 + b"t.",
    b"\x80\x04}(" + b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(1, 20_000))
    + b"u.",  # keys of one hash
    b"\x80\x04(" + b"\x8f" * 300_000 + b"t.",  # sets, of a byte each in the file
], ids=["memo", "key", "scalars", "opcode", "sets", "hashes", "long"])
def test_small_malicious_files_take_bounded_memory_and_time(tmp_path: Path, bomb: bytes,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "64")  # as 512 does, in an eighth of the time
    path = saved(tmp_path / "a.npy", {})
    path.write_bytes(path.read_bytes()[:128] + bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadDataError, match=r"a\.npy: cannot be read.*AGENT_JAX_MAX_READ_MB") as error:
        read_object_array(path)
    assert len(str(error.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024 + len(bomb) / 1024  # KiB


def test_nested_shared_lists_are_read(tmp_path: Path) -> None:
    value: list[Any] = []
    for _ in range(40):
        value = [value, value]  # 2^40 paths through 41 lists
    found = read_object_array(saved(tmp_path / "a.npy", {"language": value}))["language"]
    assert found[0] is found[1]


def test_environment_variable_raises_the_memory_bound(tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.npy", {"ann": [str(number) for number in range(5000)]})
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "1")
    with pytest.raises(BadDataError, match=r"more than 3,640 opcodes.*AGENT_JAX_MAX_READ_MB"):
        read_object_array(path)
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "8")
    assert read_object_array(path)["ann"][4999] == "4999"
