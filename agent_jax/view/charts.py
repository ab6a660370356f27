"""Line charts as inline SVG."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup

from agent_jax.view.page import render

# Okabe and Ito's colours, which people with any colour vision distinguish, without their yellow, pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 26  # margins around the plot
_MOST_POINTS = 300  # of a line; more are joined to means
_LOG_FROM = 8.0  # greatest y / least y from which the y axis is logarithmic


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]  # (x, y) in the order of x; points that are not finite are left out
    colour: int = 0  # index into COLOURS
    dashed: bool = False  # and with a mark at each point
    intervals: Sequence[tuple[float, float]] = ()  # (low, high) of each point


def line_chart(title: str, series: Iterable[Series], *, y_range: tuple[float, float] | None = None,
               percent: bool = False, from_zero: bool = False) -> Markup:
    """A chart with a legend; empty if there is no point to draw.

    Args:
        title: above the chart.
        series: the lines.
        y_range: of the y axis; None: that of the points.
        percent: y is a share, written in percent.
        from_zero: the y axis begins at 0 and is linear; else it is logarithmic for positive values of several sizes.
    """
    drawn = [one for line in series if (one := _finite(line)).points]
    if not drawn:
        return Markup()
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points] + [y for one in drawn for pair in one.intervals for y in pair]
    y_range = (0.0, max(ys)) if from_zero and max(ys) > 0 else y_range
    log = y_range is None and min(ys) > 0 and max(ys) / min(ys) > _LOG_FROM
    low, high = y_range or (min(ys), max(ys))
    if low == high:
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    left, right = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)

    def x_of(x: float) -> float:
        return round(_LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y_of(y: float) -> float:
        share = (math.log(y / low) / math.log(high / low)) if log else (y - low) / (high - low)
        return round(_HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (_HEIGHT - _TOP - _BOTTOM), 1)

    lines = [{"name": one.name, "colour": COLOURS[one.colour % len(COLOURS)], "dashed": one.dashed,
              "path": " ".join(f"{x_of(x)},{y_of(y)}" for x, y in one.points),
              "marks": [(x_of(x), y_of(y), f"{one.name}, step {x:,.0f}: {_number(y, percent)}") for x, y in one.points]
              if one.dashed or len(one.points) == 1 else [],
              "bars": [(x_of(x), y_of(a), y_of(b)) for (x, _), (a, b) in zip(one.points, one.intervals, strict=False)]}
             for one in drawn]
    return Markup(render("chart.svg", title=title, width=_WIDTH, height=_HEIGHT, left=_LEFT, right=_WIDTH - _RIGHT,
                         top=_TOP, bottom=_HEIGHT - _BOTTOM, lines=lines,
                         x_ticks=[(x_of(x), _number(x)) for x in _ticks(left, right)],
                         y_ticks=[(y_of(y), _number(y, percent))
                                  for y in (_log_ticks(low, high) if log else _ticks(low, high))]))


def _finite(series: Series) -> Series:
    """The series without points that are not finite, long ones joined to means of neighbours."""
    intervals = list(series.intervals) or [None] * len(series.points)
    kept = [(point, interval) for point, interval in zip(series.points, intervals, strict=True)
            if point[1] is not None and math.isfinite(point[1])]
    points = [point for point, _ in kept]
    if len(points) > _MOST_POINTS and not series.intervals:
        points = [tuple(part.mean(axis=0).tolist()) for part in np.array_split(np.asarray(points), _MOST_POINTS)]
    return dataclasses.replace(series, points=points, intervals=[pair for _, pair in kept if pair])


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [round(n * step, 12) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, with their 2 and 5 multiples if these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 5 else (1,)
    return [value for power in powers for factor in factors if low <= (value := factor * 10.0**power) <= high]


def _number(value: float, percent: bool = False) -> str:
    if percent:
        return f"{100 * value:.4g}%"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
