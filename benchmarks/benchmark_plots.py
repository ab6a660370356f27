"""Plots of the benchmarks' page, by matplotlib: bars, or curves on logarithmic axes; a panel each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS = 3
COLOURS = ("#3465a4", "#cc6600")

# Text stays text, and the same figures make the same file.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "agent_jax", "font.size": 8})


def save(path: Path, *, unit: str, bars: Mapping[str, Mapping[str, float]] | None = None,
         lines: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]] | None = None) -> None:
    """Write an SVG.

    Args:
        path: of the file.
        unit: of all values.
        bars: value by label, by panel.
        lines: points (x, y) by line, by panel.
    """
    panels = bars or lines or {}
    columns = min(COLUMNS, len(panels)) if lines else 1
    rows = -(-len(panels) // columns)
    heights = [0.5 + 0.22 * len(panel) for panel in bars.values()] if bars else [2.2] * rows
    figure = Figure(figsize=(7.5, sum(heights) + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, height_ratios=heights).flat)
    for place, (title, panel) in zip(axes, panels.items(), strict=False):
        (_draw_bars if bars else _draw_lines)(place, panel)
        place.set_title(title)
    for place in axes[len(panels) :]:
        place.set_axis_off()
    (figure.supxlabel if bars else figure.supylabel)(unit)
    figure.savefig(path, metadata={"Date": None})


def _draw_bars(place: Axes, panel: Mapping[str, float]) -> None:
    drawn = place.barh(list(panel), list(panel.values()), color=COLOURS[0])
    place.bar_label(drawn, fmt=_short, padding=2)
    place.invert_yaxis()
    place.margins(x=0.15)


def _short(value: float) -> str:
    """Three digits, and no power of ten where a reader expects thousands: 0.123, 12.3, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _draw_lines(place: Axes, panel: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for (name, points), colour in zip(panel.items(), COLOURS, strict=True):
        place.loglog(*zip(*points, strict=True), marker="o", color=colour, label=name, base=2)
    place.legend()
