from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.data.store.cache import read_cached, write_cached


def test_written_arrays_are_read_and_no_other_file_remains(tmp_path):
    file = tmp_path / "cache" / "index-1.npz"
    assert read_cached(file) is None
    write_cached(file, {"lengths": np.arange(3)})
    found = read_cached(file)
    assert found is not None
    np.testing.assert_array_equal(found["lengths"], [0, 1, 2])
    assert list(file.parent.iterdir()) == [file]


def test_a_full_disk_is_logged_and_leaves_no_file(tmp_path, monkeypatch, caplog):
    def full(file: Any, **_: Any) -> None:
        with file.open("wb") if isinstance(file, Path) else file as opened:
            opened.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    write_cached(tmp_path / "index-1.npz", {"lengths": np.arange(3)})
    assert "cannot be cached" in caplog.text
    assert not list(tmp_path.iterdir())
