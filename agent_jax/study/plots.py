"""Few-shot curves by matplotlib: success by number of demonstrations, a panel for each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure


def plot_curves(path: Path, curves: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
    """Write an SVG of mean success with its interval as a band.

    Args:
        path: of the file.
        curves: TARGET -> ARM -> points {"demonstrations", "mean", "ci": [low, high] or None}.
    """
    panels = {target: arms for target, arms in curves.items() if arms}
    colours = {arm: f"C{i}" for i, arm in enumerate(dict.fromkeys(arm for arms in panels.values() for arm in arms))}
    # Text stays text, and the same figures make the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "agent_jax", "font.size": 8}):
        figure = Figure(figsize=(3.2 * len(panels), 2.6), layout="constrained")
        for place, (target, arms) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(),
                                         strict=True):
            for arm, points in arms.items():
                numbers = [point["demonstrations"] for point in points]
                place.plot(numbers, [point["mean"] for point in points], marker="o", color=colours[arm], label=arm)
                if all(point["ci"] for point in points):
                    place.fill_between(numbers, *([point["ci"][side] for point in points] for side in (0, 1)),
                                       color=colours[arm], alpha=0.2, linewidth=0)
            place.set_xscale("log")
            numbers = sorted({point["demonstrations"] for points in arms.values() for point in points})
            place.set_xticks(numbers, [f"{number:,}" for number in numbers])
            place.set_xticks([], minor=True)
            place.set_xlabel("demonstrations")
            place.set_title(target)
            place.set_ylim(0, 1)
            place.set_ylabel("success")
            place.legend()
        figure.savefig(path, metadata={"Date": None})
