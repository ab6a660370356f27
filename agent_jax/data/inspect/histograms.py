"""Histograms of `check` for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_BINS = 21  # as for actions in the paper
_WIDTH = 40  # characters of the longest bar
_SLACK = 1e-6  # of the width of the bounds: rounding of float32


def share_of(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The shares of values beyond the bounds, and at or beyond them."""
    if not len(values):
        return 0.0, 0.0
    slack = _SLACK * (high - low)
    outside = np.mean((values < low - slack) | (values > high + slack))
    at_bound = np.mean((values <= low + slack) | (values >= high - slack))
    return float(outside), float(at_bound)


def sparkline(values: np.ndarray, low: float, high: float) -> str:
    """A histogram of one character a bin; a bin with any value is not blank."""
    if high <= low:
        return _EIGHTHS[-1] if len(values) else _EIGHTHS[0]
    counts, _ = np.histogram(np.clip(values, low, high), bins=_BINS, range=(low, high))
    top = max(int(counts.max()), 1)
    return "".join(_EIGHTHS[-(-int(count) * 8 // top)] for count in counts)


def value_lines(dimensions: Sequence[tuple[str, np.ndarray, float | None, float | None]],
                units: Mapping[str, str]) -> list[str]:
    """A line for each dimension: histogram over its bounds, range found, shares beyond and at a bound."""
    width = max((len(place) for place, *_ in dimensions), default=0)
    lines = []
    for place, values, low, high in dimensions:
        if not len(values):
            lines.append(f"  {place:<{width}}  no finite values")
            continue
        least, most = float(values.min()), float(values.max())
        found = f"found {least:.4g} to {most:.4g}"
        if low is None or high is None:
            lines.append(f"  {place:<{width}}  {least:>9.4g} |{sparkline(values, least, most)}| {most:<9.4g}")
            continue
        outside, at_bound = share_of(values, low, high)
        unit = units.get(place, "")
        lines.append(f"  {place:<{width}}  {low:>9.4g} |{sparkline(values, low, high)}| {high:<9.4g} {unit:<4} "
                     f"{found}; beyond {outside:.2%}, at a bound {at_bound:.2%}")
    return lines


def bars(values: np.ndarray, low: int, high: int, most: int = 10) -> list[str]:
    """A histogram of whole numbers with a bar for each line, at most `most`."""
    edges = np.unique(np.floor(np.linspace(low, high + 1, min(most, high - low + 1) + 1)).astype(int))
    counts, _ = np.histogram(values, edges)
    top = max(int(counts.max()), 1)
    width = len(str(high))
    return [f"{first:>{width}} to {end - 1:>{width}} {'█' * -(-int(count) * _WIDTH // top)} {count:,}"
            for first, end, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)]
