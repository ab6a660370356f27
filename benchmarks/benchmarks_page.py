"""The page benchmarks/results/MACHINE/benchmarks.md: machine, then output, tables and plot of each benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent_jax.runtime.extras import install

Runs = Mapping[str, Mapping[str, Any]]  # by benchmark, as in benchmarks.json
SAMPLES = ("seconds", "all_seconds")  # lists of single measurements: nothing to compare
HEAD = """# Benchmarks

Written by `python benchmarks/run_all.py`; do not edit. The figures are also in [benchmarks.json](benchmarks.json). On
another machine, add `--beside FILE`, where FILE is this machine's `benchmarks.json`, to print both machines' figures.
"""


def page(runs: Runs, plots: Mapping[str, str], beside: Runs | None, head: str = HEAD) -> str:
    """The page as Markdown.

    Args:
        runs: by benchmark.
        plots: path of a benchmark's plot from the page, or why there is none.
        beside: another machine's.
        head: what it begins with.
    """
    parts = [head, _machines(runs)]
    for name, run in runs.items():
        parts.append(f"## {name}\n")
        if run.get("command"):
            parts.append(f"    {run['command']}\n")
        if run["status"] != "ok":
            first, *rest = run["reason"].splitlines()
            parts.append(f"**{run['status']}**: {first}\n")
            parts += [_fenced(rest)] * bool(rest)
            parts.append(printed(run.get("said", "")))
            continue
        quick = "; tiny sizes, so no figures to go by" if run["mode"] == "quick" else ""
        parts.append(f"{run['seconds']:.0f} s in all, {run['machine']['date'][:10]}{quick}.\n")
        parts.append(printed(run["said"]))
        found = plots.get(name, "")
        parts += [f"![{name}]({found})\n" if found.endswith(".svg") else f"No plot: {found}.\n"] * bool(found)
        if beside and beside.get(name, {}).get("status") == "ok":
            parts.append(_beside(run, beside[name]))
    return "\n".join(parts)


def printed(said: str) -> str:
    """What a benchmark printed: its Markdown tables as they are, the rest between fences."""
    blocks = []
    for is_table, lines in itertools.groupby(said.splitlines(), key=lambda line: line.startswith("|")):
        kept = [line.rstrip() for line in lines]
        if is_table:
            blocks.append("\n".join(kept) + "\n")
        elif any(kept):
            blocks.append(_fenced(kept))
    return "\n".join(blocks)


def numbers(figures: Any, path: str = "") -> dict[str, float]:
    """Every number of a benchmark's figures by its path; lists by index, or by name where their entries have names."""
    if isinstance(figures, bool) or figures is None or isinstance(figures, str):
        return {}
    if isinstance(figures, (int, float)):
        return {path: float(figures)}
    items: list[tuple[str, Any]] = []
    if isinstance(figures, Mapping):
        items = [(str(key), value) for key, value in figures.items()
                 if key not in ("versions", "load", "sizes") and not (key in SAMPLES and isinstance(value, list))]
    elif isinstance(figures, list):
        items = [(_entry_name(value) or str(index), value) for index, value in enumerate(figures)]
    found: dict[str, float] = {}
    for key, value in items:
        found |= numbers(value, f"{path}.{key}" if path else key)
    return found


def write_plots(runs: Runs, directory: Path) -> dict[str, str]:
    """Draw what can be drawn; returns the file name of each plot, or why there is none."""
    drawn: dict[str, str] = {}
    for name, run in runs.items():
        if run["status"] != "ok" or name not in PLOTS:
            continue
        try:
            from benchmark_plots import save  # matplotlib: the extra "benchmarks"

            directory.mkdir(parents=True, exist_ok=True)
            save(directory / f"{name}.svg", **PLOTS[name](run["figures"]))
            drawn[name] = f"{name}.svg"
        except ModuleNotFoundError as error:
            drawn[name] = f"{error.name} is not installed (`{install('benchmarks')}`)"
        except (KeyError, TypeError, ValueError, IndexError) as error:
            drawn[name] = f"its JSON is of another form than the plot expects ({error!r})"
    return drawn


def _machines(runs: Runs) -> str:
    """A row for each different machine; load and date are of each run."""
    rows: dict[tuple[Any, ...], list[str]] = {}
    for name, run in runs.items():
        machine = run["machine"]
        memory = machine.get("memory_bytes")
        versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
        accelerators = ", ".join(machine.get("accelerators") or []) or "none"
        key = (machine["cpu"], machine["cores"], f"{memory / 2**30:.0f} GiB" if memory else "?", machine["system"],
               accelerators, versions)
        started = machine["date"][:16].replace("T", " ")
        rows.setdefault(key, []).append(f"{name} ({started}, load {machine['load_before']})")
    lines = []
    for (cpu, cores, memory, system, accelerators, versions), names in rows.items():
        lines += [f"- {cpu}, {cores} cores, {memory}; {system}; accelerators: {accelerators}; {versions}.",
                  f"  Started, UTC, and the load before: {', '.join(names)}."]
    return "\n".join(lines) + "\n"


def _beside(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    ours, theirs = numbers(here["figures"]), numbers(there["figures"])
    lines = [f"| figure | here | {there['machine']['cpu']}, {there['machine']['cores']} cores | here / there |",
             "|---|---:|---:|---:|"]
    for path in [path for path in ours if path in theirs]:
        ratio = f"{ours[path] / theirs[path]:.2f}" if theirs[path] else ""
        lines.append(f"| {path} | {ours[path]:.4g} | {theirs[path]:.4g} | {ratio} |")
    return "\n".join(lines) + "\n"


def _entry_name(value: Any) -> str:
    """What tells the entries of a list apart, from the texts and sizes in them."""
    if not isinstance(value, Mapping):
        return ""
    told = [str(value[key]) for key in ("mode", "model", "framework", "precision", "compiled", "clients", "batch")
            if isinstance(value.get(key), (str, int))]
    return "-".join(told)


def _fenced(lines: list[str]) -> str:
    body = "\n".join(lines).strip("\n")
    return f"```\n{body}\n```\n"


def _scaling(figures: Mapping[str, Any]) -> dict[str, Any]:
    curves = {}
    for name, curve in figures["curves"].items():
        points = curve["points"]
        curves[name] = {"time": [(point[name], point["seconds"] / points[0]["seconds"]) for point in points],
                        "FLOPs": [(point[name], point["flops"] / points[0]["flops"]) for point in points]}
    return {"lines": curves, "unit": "times the smallest"}


def _train_step(figures: Mapping[str, Any]) -> dict[str, Any]:
    bars: dict[str, dict[str, float]] = {}
    for case in figures["cases"]:
        parts = (case.get("model") or case["framework"], case["precision"], "compiled" if case["compiled"] else "eager")
        bars.setdefault(f"language model sees: {case['mode']}", {})[" ".join(parts)] = case["seconds_per_step"]
    return {"bars": bars, "unit": "seconds a step"}


def _step_profile(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"bars": {"operations by kind": figures["by_kind"], "and by part": figures["by_part"]},
            "unit": "seconds a step"}


def _end_to_end(figures: Mapping[str, Any]) -> dict[str, Any]:
    starts = {way: min(start["seconds"] for start in starts) for way, starts in figures["starts"].items() if starts}
    return {"bars": {"the whole job": figures["job"]["seconds"], **({"to the first step": starts} if starts else {})},
            "unit": "seconds"}


def _act_latency(figures: Mapping[str, Any]) -> dict[str, Any]:
    def milliseconds(found: Any) -> float:
        return 1e3 * (found["action"] if isinstance(found, Mapping) else found[0])

    return {"bars": {f"batch {batch}": {way: milliseconds(found) for way, found in ways.items()}
                     for batch, ways in figures["seconds"].items()}, "unit": "milliseconds an action"}


def _input_pipeline(figures: Mapping[str, Any]) -> dict[str, Any]:
    rates = {way: found["frames_per_s"] for way, found in figures["rates"].items() if "frames_per_s" in found}
    return {"bars": {"files to batches": rates}, "unit": "frames a second"}


def _serve_latency(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"bars": {f"{row['clients']} robots": row["round_trip_ms"] for row in figures["served"]},
            "unit": "milliseconds, from a robot's side"}


PLOTS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "end_to_end": _end_to_end, "train_step": _train_step, "train_step_bf16": _train_step,
    "train_step_all": _train_step, "train_step_exported": _train_step, "step_profile": _step_profile,
    "scaling_curves": _scaling, "act_latency": _act_latency, "act_latency_bf16": _act_latency,
    "input_pipeline": _input_pipeline, "serve_latency": _serve_latency,
}
