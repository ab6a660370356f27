"""NumPy files: the values equal those that NumPy reads, and wrong headers are refused before allocation."""

from __future__ import annotations

import io
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.npy_file import open_npz, read_npy

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "columns": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
          "image": np.full((4, 5, 3), 7, np.uint8), "scalar": np.float32(2.5), "empty": np.zeros((0, 7)),
          "texts": np.array(["a", "long"])}


def npy(shape: Any, dtype: str, content: bytes) -> bytes:
    """A .npy file with the given header."""
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def zipped(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)
    return path


def test_arrays_equal_those_saved_by_numpy(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **ARRAYS)
        with open_npz(tmp_path / "x.npz") as content:
            for name, expected in ARRAYS.items():
                member = content.member(name)
                assert member.header.shape == np.shape(expected)
                found = content.read(member)
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)
    for expected in ARRAYS.values():
        np.save(tmp_path / "x.npy", expected)
        np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), expected)


@pytest.mark.parametrize(("content", "message"), [
    (npy((10**13,), "<f8", b"x" * 56), "header says float64.10000000000000., 80,000,000,000,000 bytes, but 56 follow"),
    (npy((2,), "<f8", b"x" * 24), "16 bytes, but 24 follow"),
    (npy((-2,), "<f8", b"x" * 16), "-16 bytes, but 16 follow"),
    (npy((1,), "|O", b"N."), "holds objects"),
    (npy("no", "<f8", b""), "shape is not valid"),
    (npy((1,), "<f99", b""), "descr is not a valid dtype"),
    (b"\x93NUMPY\x01\x00\x10\x27" + b"-" * 10_000, "[Hh]eader"),
    (b"\x93NUMPY\x07\x00", r"format \(7, 0\)|version"),
    (b"no array", "magic"),
    (b"", "EOF|magic"),
])
def test_wrong_header_is_refused_with_file_and_reason(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(BadDataError, match=rf"x\.npy: cannot be read .*({message})"):
        read_npy(tmp_path / "x.npy")
    with (open_npz(zipped(tmp_path / "x.npz", content)) as archive,
          pytest.raises(BadDataError, match=rf"x\.npz, array 'a': cannot be read .*({message})")):
        archive.read(archive.member("a"))


def test_member_beyond_the_memory_bound_is_refused_before_reading(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "64")
    with (zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
          archive.open("a.npy", "w") as member):
        member.write(npy((120, 2**20), "|u1", b""))
        for _ in range(120):
            member.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (open_npz(tmp_path / "x.npz") as content,
          pytest.raises(BadDataError, match=r"x\.npz, array 'a'.* unpack to 125,8.*AGENT_JAX_MAX_READ_MB=")):
        content.read(content.member("a"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_other_and_truncated_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **ARRAYS)
    whole = (tmp_path / "x.npz").read_bytes()
    with pytest.raises(BadDataError, match=r"x\.npz: cannot be read \(the magic string"):
        read_npy(tmp_path / "x.npz")
    with open_npz(tmp_path / "x.npz") as content, pytest.raises(BadDataError, match=r"has no 'b'; it has a, columns"):
        content.member("b")
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(BadDataError, match=r"cut\.npz: cannot be read"), open_npz(tmp_path / "cut.npz"):
            pass
    spoilt = bytearray(whole)
    spoilt[whole.index(np.arange(6.0).tobytes()) + 20] ^= 1
    (tmp_path / "x.npz").write_bytes(spoilt)
    with (open_npz(tmp_path / "x.npz") as content,
          pytest.raises(BadDataError, match=r"array 'a': cannot be read \(Bad CRC-32")):
        content.read(content.member("a"))
    encrypted = io.BytesIO(whole)
    flagged = bytearray(encrypted.getvalue())
    flagged[whole.rindex(b"PK\x01\x02") + 8] |= 1  # of the last array, in the directory
    (tmp_path / "x.npz").write_bytes(flagged)
    with (open_npz(tmp_path / "x.npz") as content,
          pytest.raises(BadDataError, match="array 'texts': cannot be read .*encrypted")):
        content.member("texts")
