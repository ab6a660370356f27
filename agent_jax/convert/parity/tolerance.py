"""Compares two computations of the same values, with one rule of tolerance.

    one block     1e-5
    whole stack   1e-4
    either        1e-5 of the largest magnitude, if values exceed 10

of the largest absolute difference in f32. Never relax a tolerance to pass: a looser one hides a bug.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

BLOCK = 1e-5
STACK = 1e-4
RELATIVE = 1e-5
LARGE = 10.0  # RELATIVE holds for magnitudes beyond this


class ParityError(RuntimeError):
    """An exported folder differs from its checkpoint; the folder was not written."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference between two computations of one tensor."""

    name: str
    difference: float  # the largest absolute one; NaN if either has a NaN
    largest: float  # magnitude of the reference
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "passed": self.passed}


def compare(name: str, ours: Any, reference: Any, tolerance: float) -> Comparison:
    """Compare two arrays.

    Raises:
        ValueError: the shapes differ.
    """
    left, right = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if left.shape != right.shape:
        raise ValueError(f"{name}: ours has shape {left.shape}, the reference {right.shape}")
    largest = float(np.max(np.abs(right)))
    if largest > LARGE:
        tolerance = max(tolerance, RELATIVE * largest)
    return Comparison(name, float(np.max(np.abs(left - right))), largest, tolerance)


def table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as a table to print."""
    width = max(len(row.name) for row in comparisons)
    lines = [f"{'':<{width}}  {'difference':>10}  {'largest':>10}  {'tolerance':>10}"]
    lines += [f"{row.name:<{width}}  {row.difference:>10.2e}  {row.largest:>10.3g}  {row.tolerance:>10.2e}  "
              f"{'ok' if row.passed else 'FAILED'}" for row in comparisons]
    return "\n".join(lines)
