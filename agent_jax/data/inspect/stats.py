"""`python -m agent_jax.data stats`: counts and statistics of every number, in one pass that decodes no image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from agent_jax.data.store.statistics import SplitNumbers, Statistics
from agent_jax.data.store.store import open_store

_MOST_NUMBERS = 256  # of one step's value: leaves out instructions stored as 512 codes


def stats(path: Path) -> dict[str, Any]:
    """Statistics of a data set, as JSON.

    Returns:
        {"name", "directory", "splits": {split: {"records", "steps", "bytes", "fields": {path: {"shape", "min", "max",
        "mean", "std", "quantiles": {"0.01": ...}}}}}}; each figure has the shape of one step's value.

    Raises:
        FileNotFoundError, ValueError: there is no data set, or one of its numbers is not finite.
    """
    store = open_store(path)
    splits: dict[str, Any] = {}
    keys = [name for name, field in store.fields.items() if field.per_step and field.kind == "array"
            and -1 not in field.shape and math.prod(field.shape) <= _MOST_NUMBERS]
    for name, records in store.splits.items():
        found = SplitNumbers(store, name, keys).statistics if records and keys else {}
        size = sum(file.stat().st_size for file in store.files(name))
        steps = next(iter(found.values())).count if found else 0
        splits[name] = {"records": records, "steps": steps, "bytes": size,
                        "fields": {key: _plain(key_found) for key, key_found in found.items()}}
    return {"name": store.name, "directory": str(store.directory), "splits": splits}


def _plain(found: Statistics) -> dict[str, Any]:
    figures = {name: getattr(found, name).tolist() for name in ("min", "max", "mean", "std")}
    quantiles = {str(q): value.tolist() for q, value in found.quantiles.items()}
    return {"shape": list(found.min.shape), **figures, "quantiles": quantiles, "exact": found.exact}
