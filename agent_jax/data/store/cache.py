"""What is found out about a data set by reading all of it, kept in the user's cache by the state of its files.

    key = hash of (what is kept, format, path, size and time of change of every file of the split, ...)

A data set that changes has another key, so nothing stale is ever found. A cache that cannot be written costs time only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from agent_jax.data.store.store import Store


def cache_directory() -> Path:
    """AGENT_JAX_CACHE, or agent_jax in the user's cache directory. Data directories may be read-only or shared."""
    own = os.environ.get("AGENT_JAX_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent_jax"


def cached_file(kind: str, store: Store, split: str, *parts: Any) -> Path:
    """Where something about a split is kept.

    Args:
        kind: what it is, the first part of the file's name.
        store: the data set.
        split: its split.
        *parts: whatever else it depends on, its format included, as JSON.
    """
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in store.files(split)]
    key = hashlib.sha256(json.dumps([files, split, *parts]).encode()).hexdigest()[:32]
    return cache_directory() / f"{kind}-{key}.npz"


def read_cached(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of `write_cached`; None where there are none, or none that can be read."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            return dict(saved)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logging.getLogger(__name__).warning("%s: unreadable (%s); it is made anew", path, error)
        return None


def write_cached(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays under their name in one rename; without a writable cache they are made anew the next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, suffix=".tmp") as directory:  # gone on a full disk, too
            plain: dict[str, Any] = dict(arrays)
            made = Path(directory) / path.name
            np.savez(made, **plain)
            os.replace(made, path)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: cannot be kept (%s); set AGENT_JAX_CACHE to a writable directory",
                                            path, error)
