"""`python -m agent_jax.view run`: one page about one run, or about several runs compared.

    WORKDIR/{metrics.jsonl, report.json, checkpoints, pictures, rollouts} --RunRecord--> sections --> report.html

Of several runs the differences of their configs come first, curves are drawn over one another, and success on shared
seeds is compared by McNemar's exact test.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from agent_jax.evaluate.in_training import by_task
from agent_jax.evaluate.statistics import holm, paired_summary
from agent_jax.view.charts import COLOURS, Series, line_chart
from agent_jax.view.episodes import episodes_of_report, success_rows, videos_of
from agent_jax.view.page import data_uri, write_page
from agent_jax.view.run_record import RunRecord, flat

_MOST_PICTURES = 6  # reconstructions of a run, evenly spaced over its steps
_ALPHA = 0.05


def write_run_page(path: Path, directories: Sequence[Path], checkpoints: epath.Path | None = None,
                   name: str = "") -> None:
    """Write the page of some runs.

    Args:
        path: of the page.
        directories: the workdirs.
        checkpoints: of the only run, if they are not in its workdir.
        name: of the only run, if its workdir's is not.

    Raises:
        FileNotFoundError, ValueError: as `RunRecord.read`; nothing is written.
    """
    runs = [RunRecord.read(directory, checkpoints) for directory in directories]
    if name:
        runs = [dataclasses.replace(run, name=name) for run in runs]
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else str(run.directory) for run in runs]
    several = len(runs) > 1
    write_page(
        path, "run.html", title=("Runs: " if several else "Run: ") + ", ".join(labels), several=several,
        colours=[COLOURS[i % len(COLOURS)] for i in range(len(runs))],
        differences=_differences(runs) if several else [], pairs=_pairs(runs, labels),
        charts=[chart for chart in _charts(runs, labels) if chart[1]], success=_success(runs, labels),
        runs=[{"label": label, **_facts(run)} for run, label in zip(runs, labels, strict=True)])


def _facts(run: RunRecord) -> dict[str, Any]:
    """What the page has of each run."""
    report, config = run.report, run.config
    machine = report.get("machine", {})
    steps = config.get("train", {}).get("steps")
    last = run.records[-1]["step"] if run.records else 0
    times = [record["time"] for record in run.records if "time" in record]
    of = f" of {steps:,}" if steps else ""
    hardware = (machine.get("cpu"), f"{machine.get('cores')} cores", *machine.get("devices", ()))
    summary = {
        "workdir": run.directory if run.name == run.directory.resolve().name else run.name,
        "state": f"step {last:,}{of}, {'ended' if report else 'not ended'}",
        "command": report.get("command"), "ended": report.get("date"), "start": report.get("start"),
        "time from first to last logged step": f"{(times[-1] - times[0]) / 60:,.1f} minutes" if times else "",
        "peak memory": f"{report['peak_rss_bytes'] / 2**30:.2f} GiB" if "peak_rss_bytes" in report else "",
        "machine": ", ".join(map(str, filter(None, hardware))) if machine else "",
    }
    seconds = report.get("seconds", {})
    return {
        "notes": run.notes, "summary": [(name, value) for name, value in summary.items() if value],
        "changed": [(name, _text(value)) for name, value in sorted(run.changed_fields().items())],
        "config": json.dumps(config, indent=2) if config else "",
        "data": "\n".join(report.get("data", ())), "domains": _domains(run), "parts": _parts(run),
        "versions": [(name, value) for name, value in machine.items() if name not in ("cpu", "cores", "devices")],
        "phases": [(name, value, value / max(seconds.values())) for name, value in seconds.items() if value],
        "pictures": _pictures(run),
        "scores": [(domain, [(name, value) for name, value in flat(scores).items() if isinstance(value, (int, float))])
                   for domain, scores in report.get("evaluation", {}).items()],
        "videos": videos_of(run.directory / "rollouts"),
        "failures": episodes_of_report(report.get("closed_loop", {})),
    }


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text):,} characters)"


def _domains(run: RunRecord) -> list[dict[str, Any]]:
    """A row of the data table for each domain of the config."""
    rows = []
    for name, entry in sorted(run.config.get("data", {}).get("domains", {}).items()):
        meta = run.domains.get(name, {})
        gathered = entry.get("demonstrations", {}).get("environment") or (
            "" if entry.get("path") else run.config["data"].get("demonstrations", {}).get("environment", ""))
        spec = meta.get("spec") or meta.get("action_spec") or entry.get("action_spec") or {}
        spec = spec.get("spec", spec)
        rows.append({"name": name, "layout": entry.get("layout", "actions"), "actions": spec.get("name", "-"),
                     "cameras": ", ".join(entry.get("cameras", meta.get("cameras", ()))),
                     "window": f"{entry.get('window')}/{entry.get('stride')}", "weight": entry.get("weight", 1),
                     "source": entry.get("path") or (f"demonstrations of {gathered}" if gathered else "-")})
    return rows


def _parts(run: RunRecord) -> list[tuple[str, int, float]]:
    """(part, parameters, share of all) of the model."""
    counts: dict[str, int] = {}
    for path, shape in run.parameters.items():
        part = path.split("/")[0]
        counts[part] = counts.get(part, 0) + math.prod(shape)
    total = sum(counts.values())
    parts = [(part, count, count / total) for part, count in sorted(counts.items(), key=lambda item: -item[1])]
    return [*parts, ("all", total, 1.0)] if parts else []


def _pictures(run: RunRecord) -> list[tuple[str, str]]:
    """(caption, data URI) of reconstructions, by step."""
    found = {}
    for path in (run.directory / "pictures").glob("reconstruction-*.png"):
        step = path.stem.removeprefix("reconstruction-")
        if step.isdecimal():
            found[int(step)] = path
    steps = sorted(found)
    chosen = sorted({steps[i] for i in np.linspace(0, len(steps) - 1, min(len(steps), _MOST_PICTURES)).round().astype(
        int)}) if steps else []
    return [(f"step {step:,}", data_uri(found[step].read_bytes(), found[step].name)) for step in chosen]


def _differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """(field, its value in each run) of the config fields that differ; paths of the workdirs are no fields."""
    configs = [flat(run.config) for run in runs]
    names = sorted({name for config in configs for name in config})
    missing = "(no such field)"
    return [(name, [_text(config.get(name, missing)) for config in configs]) for name in names
            if any(config.get(name, missing) != configs[0].get(name, missing) for config in configs)]


def _charts(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """(heading, charts) of the curves."""
    def of_losses(*path: str) -> list[Series]:
        """Training as a line, validation dashed; a colour for each run."""
        return [Series(f"{label}{' ' if label else ''}{split}", run.curve(split, *path), colour, split == "validation")
                for colour, (run, label) in enumerate(zip(runs, labels if len(runs) > 1 else [""], strict=True))
                for split in ("train", "validation")]

    def of_training(title: str, *path: str, **axis: Any) -> Any:
        return line_chart(title, [Series(label, run.curve("train", *path), colour)
                                  for colour, (run, label) in enumerate(zip(runs, labels, strict=True))], **axis)

    losses = list(dict.fromkeys(name for run in runs for name in run.losses))
    domains = list(dict.fromkeys(name for run in runs for name in run.domain_names))

    def chart(title: str, *path: str) -> Any:
        share = path[-1].endswith("accuracy")
        return line_chart(title, of_losses(*path), y_range=(0.0, 1.0) if share else None, percent=share)

    by_loss: list[Any]
    if len(runs) > 1:
        by_loss = [chart(f"{domain}: {_words(name)}", "domains", domain, name) for domain in domains for name in losses]
    else:  # one chart for each loss, a colour for each domain
        by_loss = [line_chart(_words(name), [
            Series(f"{domain}{'' if split == 'train' else ' (validation)'}",
                   runs[0].curve(split, "domains", domain, name), colour, split == "validation")
            for colour, domain in enumerate(domains) for split in ("train", "validation")],
            y_range=(0.0, 1.0) if name.endswith("accuracy") else None, percent=name.endswith("accuracy"))
            for name in losses]
    return [
        ("Losses", [c for c in (chart("total loss", "loss"), *(chart(_words(name), "losses", name)
                                                               for name in losses)) if c]),
        ("Losses by domain", [c for c in by_loss if c] if len(domains) > 1 else []),
        ("Speed and optimizer", [c for c in (
            of_training("images per second", "rates", "frames_per_second", from_zero=True),
            of_training("slots per second", "rates", "slots_per_second", from_zero=True),
            of_training("share of the time spent waiting for data", "rates", "data_wait", from_zero=True, percent=True),
            of_training("gradient norm", "gradient_norm"),
            of_training("learning rate", "learning_rate", from_zero=True)) if c]),
        ("Success in the simulator during training", [c for c in _success_charts(runs, labels) if c]),
    ]


def _words(loss: str) -> str:
    names = {"mae": "masked autoencoder", "label": "class label"}
    name = loss.removesuffix("_accuracy")
    return f"{names.get(name, name)} {'accuracy' if loss.endswith('_accuracy') else 'loss'}"


def _success_charts(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[Any]:
    """Success by step with 95% intervals, a chart for each task."""
    series: dict[str, list[Series]] = {}
    for colour, (run, label) in enumerate(zip(runs, labels, strict=True)):
        points: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
        for record in run.of_split("closed_loop"):
            for domain, task, policies in by_task(record["success"]):
                for policy, figures in policies.items():
                    points.setdefault((f"{domain} {task}".strip(), policy), []).append(
                        (record["step"], figures["success"], *figures["ci95"]))
        for (task, policy), found in points.items():
            same = [p for t, p in points if t == task]
            series.setdefault(task, []).append(Series(
                f"{label} {policy}" if len(runs) > 1 else policy, [point[:2] for point in found],
                colour if len(runs) > 1 else same.index(policy), dashed=policy != same[0],
                intervals=[(low, high) for *_, low, high in found]))
    # One evaluation is no curve: the table below has it.
    return [line_chart(task, of_task, y_range=(0.0, 1.0), percent=True) for task, of_task in series.items()
            if any(len(one.points) > 1 for one in of_task)]


def _success(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the table of success: of the report, or of the last evaluation during training."""
    rows = []
    for run, label in zip(runs, labels, strict=True):
        during = run.of_split("closed_loop")
        found = run.report.get("closed_loop") or (during[-1]["success"] if during else {})
        rows += [{"run": label, **row} for row in success_rows(found)]
    order = list(dict.fromkeys((row["task"], row["policy"]) for row in rows))
    return sorted(rows, key=lambda row: order.index((row["task"], row["policy"])))  # the runs next to each other


def _outcomes(run: RunRecord) -> dict[tuple[str, str, str], dict[int, bool]]:
    """(domain, task, policy) -> seed -> success."""
    return {(domain, task, policy): {one["seed"]: one["success"] for one in figures["per_episode"]}
            for domain, task, policies in by_task(run.report.get("closed_loop", {}))
            for policy, figures in policies.items() if figures.get("per_episode")}


def _pairs(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Sentences that compare the runs on the seeds that they share, for each policy of both that is no baseline."""
    found = []
    for (one, name), (other, other_name) in combinations(zip(runs, labels, strict=True), 2):
        before, after = _outcomes(one), _outcomes(other)
        for key in before:
            seeds = sorted(before[key].keys() & after.get(key, {}).keys())
            if seeds and key[2] in ("greedy", "sampled"):
                pair = [np.asarray([of_run[key][seed] for seed in seeds], bool) for of_run in (before, after)]
                found.append((name, other_name, key, (pair[0].mean(), pair[1].mean()), paired_summary(*pair)))
    adjusted = holm([one[-1]["p"] for one in found])
    return [{"significant": p < _ALPHA, "text": _in_words(*one, p=p)} for one, p in zip(found, adjusted, strict=True)]


def _in_words(name: str, other: str, key: tuple[str, str, str], rates: tuple[float, float], result: Mapping[str, Any],
              *, p: float) -> str:
    domain, task, policy = key
    difference, (low, high) = result["difference"], result["ci95"]
    verdict = (f"{other if difference > 0 else name} is better: chance alone would rarely make such a difference"
               if p < _ALPHA else "This does not show that one of them is better: chance alone makes such a difference")
    return (f"{f'{domain} {task}'.strip()}, {policy}: of {result['episodes']} episodes with shared seeds, {name} "
            f"succeeds in {rates[0]:.1%} and {other} in {rates[1]:.1%}, {100 * difference:+.1f} percentage points (95% "
            f"interval {100 * low:+.1f} to {100 * high:+.1f}). {result['gained']} episodes succeed with {other} only, "
            f"{result['lost']} with {name} only. {verdict} (McNemar's exact test, p = {result['p']:.2g}; {p:.2g} after "
            "Holm's correction for all comparisons on this page).")
