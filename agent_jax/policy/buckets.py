"""Batches of the few sizes that calls are compiled for. NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

BUCKETS = (1, 2, 4, 8, 16, 32)  # rows


def filled(values: Sequence[Any], shape: tuple[int, ...], padding: int, dtype: Any = np.int32) -> np.ndarray:
    """An array of `shape` that begins with the values, each at the front of its row."""
    array = np.full(shape, padding, dtype)
    for row, value in enumerate(values):
        array[(row, slice(np.size(value))) if len(shape) > 1 else row] = value
    return array


def split(members: Sequence[Any]) -> Iterator[tuple[Sequence[Any], int]]:
    """Parts of `members`, each with its bucket: filled up with at most a quarter of empty rows, which cost as much."""
    while len(members):
        bucket = next((size for size in BUCKETS if size >= len(members)), BUCKETS[-1])
        if 4 * len(members) < 3 * bucket:
            bucket //= 2
        yield members[:bucket], bucket
        members = members[bucket:]
