"""A cache of results that take a pass over a whole data set, in the user's cache directory.

    key = hash of (path, size and modification time of every file of the split, name of the split, format, ...)

A changed data set has another key, so a stale result is never read. A cache that cannot be written only costs time.
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


def cached_file(kind: str, store: Store, split: str, *parts: Any) -> Path:
    """The cache file of a result about a split, in AGENT_JAX_CACHE or in agent_jax of the user's cache directory.

    Args:
        kind: of the result, the first part of the file's name.
        store: the data set.
        split: its split.
        *parts: JSON values the result depends on besides, its format among them.
    """
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in store.files(split)]
    key = hashlib.sha256(json.dumps([files, split, *parts]).encode()).hexdigest()[:32]
    directory = os.environ.get("AGENT_JAX_CACHE")  # data directories may be read-only or shared
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent_jax"
    return (Path(directory) if directory else users) / f"{kind}-{key}.npz"


def read_cached(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of `write_cached`; None if the file is missing or unreadable."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            return dict(saved)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logging.getLogger(__name__).warning("%s: unreadable (%s); it is rebuilt", path, error)
        return None


def write_cached(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays in one rename; if the cache is not writable, log a warning."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, suffix=".tmp") as directory:  # removed on a full disk, too
            plain: dict[str, Any] = dict(arrays)
            partial = Path(directory) / path.name
            np.savez(partial, **plain)
            os.replace(partial, path)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: cannot be cached (%s); set AGENT_JAX_CACHE to a writable directory",
                                            path, error)
