"""The report of a study: tables in text and Markdown, JSON, and a plot.

results --> report.json, report.md, curves.svg (with matplotlib, extra `plots`)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_jax.json_files import write_json
from agent_jax.runtime.extras import install
from agent_jax.text_table import ruled

_HEAD = ("comparison", "target", "K", "seeds", "baseline", "arm", "difference", "interval", "p (Holm)",
         "p (equivalence)", "detectable", "verdict")


def comparison_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table of comparisons, the first of which names the columns."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for name, comparison in results["comparisons"].items():
        title = f"{name}: {comparison['arm']} against {comparison['baseline']}"
        for target, found in comparison["targets"].items():
            figures = ("",) * 7
            if "mean" in found:
                low, high = found["ci"]
                figures = (f"{found['baseline']:.1%}", f"{found['arm']:.1%}", f"{found['mean']:+.1%}",
                           f"{low:+.1%} to {high:+.1%}", f"{found['p_holm']:.2g}", f"{found['p_equivalence']:.2g}",
                           f"{found['smallest_detectable']:.1%}")
            rows.append((title, target, str(found["demonstrations"]),
                         f"{len(found['pairs'])}/{found['planned_seeds']}", *figures, found["verdict"]))
    return rows


def curve_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table of few-shot curves."""
    rows = [("target", "arm", "K", "seeds", "success", "interval")]
    for target, arms in results["curves"].items():
        for arm, points in arms.items():
            for point in points:
                band = "{:.1%} to {:.1%}".format(*point["ci"]) if point["ci"] else ""
                rows.append((target, arm, str(point["demonstrations"]), str(point["seeds"]), f"{point['mean']:.1%}",
                             band))
    return rows


def report_text(results: Mapping[str, Any]) -> str:
    """The report as text."""
    parts = [f"study {results['plan']}, plan {results['sha256']}, policy {results['policy']}",
             ruled(comparison_rows(results), words=2)]
    if len(rows := curve_rows(results)) > 1:
        parts.append(ruled(rows, words=2))
    if missing := results["missing_runs"]:
        parts.append(f"missing: {len(missing)} runs: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")
    return "\n\n".join(parts)


def report_markdown(results: Mapping[str, Any], picture: str = "") -> str:
    """The report as Markdown.

    Args:
        results: of the study.
        picture: path of the plot; "": none.
    """
    parts = [f"# {results['plan']}", f"Plan `{results['sha256']}`; success of the {results['policy']} policy. "
             "Intervals are t-intervals over training seeds.", _markdown_table(comparison_rows(results))]
    if len(rows := curve_rows(results)) > 1:
        parts.append(_markdown_table(rows))
    if picture:
        parts.append(f"![success by number of demonstrations]({picture})")
    if results["missing_runs"]:
        parts.append(f"Missing runs: {len(results['missing_runs'])}.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def write_report(results: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write report.json, report.md and, if matplotlib is installed and there are curves, curves.svg."""
    written = [directory / "report.json", directory / "report.md"]
    picture = ""
    if any(results["curves"].values()):
        if importlib.util.find_spec("matplotlib") is None:
            print(f"curves.svg needs matplotlib, which is not installed: {install('plots')}", flush=True)
        else:
            from agent_jax.study.plots import plot_curves

            picture = "curves.svg"
            plot_curves(directory / picture, results["curves"])
            written.append(directory / picture)
    write_json(written[0], results)
    written[1].write_text(report_markdown(results, picture), encoding="utf-8")
    return written
