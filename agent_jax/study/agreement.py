"""Recorded figures against those of a second execution: equal, within a tolerance, or different."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agent_jax.fields import by_name

VERDICTS = EQUAL, NEAR, DIFFERENT = "equal", "within tolerance", "different"  # from the best


def compare(recorded: Mapping[str, Any], found: Mapping[str, Any], tolerance: float) -> tuple[str, dict[str, Any]]:
    """Compare all figures of `found` with those recorded, field by field.

    Args:
        recorded: as JSON, nested; may have other fields as well.
        found: as JSON, nested.
        tolerance: relative difference of numbers that is still NEAR; absolute of accuracies; 0: every bit counts.

    Returns:
        EQUAL, NEAR or DIFFERENT, and {field: [recorded, found]} of the fields that are not equal.
    """
    there, here = by_name(recorded), by_name(found)
    unequal = {name: [there.get(name), value] for name, value in here.items() if there.get(name) != value}
    if not unequal:
        return EQUAL, {}
    near = all(_near(name, one, other, tolerance) for name, (one, other) in unequal.items())
    return (NEAR if near else DIFFERENT), unequal


def _near(name: str, one: Any, other: Any, tolerance: float) -> bool:
    if not all(isinstance(value, float) for value in (one, other)):
        return False
    absolute = tolerance if name.endswith("accuracy") else 0.0
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=absolute) and tolerance > 0


def worst(verdicts: list[str]) -> str:
    """The verdict of several comparisons."""
    return max(verdicts, key=VERDICTS.index, default=EQUAL)


def machine_difference(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{field: [recorded, here]} of two `train.report.machine`; {} of the same one."""
    return {name: [recorded.get(name), here.get(name)] for name in sorted({*recorded, *here})
            if recorded.get(name) != here.get(name)}
