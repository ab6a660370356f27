"""The part of a model card that comes from the run: its data, figures with 95% intervals, command and versions.

report.json and metrics.jsonl of the workdir are read, as far as they exist; figures of another step are marked so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from agent_jax.config import Config
from agent_jax.evaluate.in_training import by_task
from agent_jax.json_files import parse_json


def run_lines(checkpoints: Any, step: int, config: Config) -> list[str]:
    """The lines of Markdown.

    Args:
        checkpoints: the directory of the run's checkpoints, or an exported folder, which has no figures.
        step: of the exported parameters.
        config: of the run.
    """
    directory = epath.Path(checkpoints)
    workdir = directory.parent if directory.name == "checkpoints" else directory
    report = dict(next(_objects(workdir / "report.json", whole=True), {}))
    metrics = list(_objects(workdir / "metrics.jsonl"))
    return [*_data(config, report), *_success(step, report, metrics), *_held_out(step, report, metrics),
            *_command(report)]


def _objects(path: epath.Path, *, whole: bool = False) -> Iterator[Mapping[str, Any]]:
    """The objects of a file, one a line or the whole; none of a file that is missing or damaged, which is logged."""
    try:
        for text in [path.read_text()] if whole else path.read_text().splitlines():
            if isinstance(found := parse_json(text, path), dict):
                yield found
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        logging.warning("The model card lacks figures: %s", error)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table of Markdown with an empty line after it; none without rows."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|---" * len(head) + "|", *lines[1:], ""] if rows else []


def _data(config: Config, report: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, domain in sorted(config.data.domains.items()):
        made = config.data.demonstrations_of(name)
        episodes = f"{sum(made.episodes.values()):,}" if not domain.path and made.environment else ""
        source = f"demonstrations in {made.environment}" if episodes else "/".join(domain.path.split("/")[-2:])
        rows.append((name, source, domain.train_split, domain.validation_split, episodes, domain.weight))
    lines = _table(("domain", "data", "train split", "validation split", "episodes", "weight"), rows)
    mixture = ["```", *report["data"], "```", ""] if report.get("data") else []
    return ["## Data", "", *lines, *mixture] if rows else []


def _success(step: int, report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of closed loops."""
    recorded = [one for one in metrics if one.get("split") == "closed_loop" and one["step"] <= step]
    at, found = (recorded[-1]["step"], recorded[-1]["success"]) if recorded else (
        report.get("steps", step), report.get("closed_loop", {}))
    rows = [(f"{domain} {task}".strip(), policy, f"{figures['success']:.1%}",
             "{:.1%} to {:.1%}".format(*figures["ci95"]), figures["episodes"])
            for domain, task, policies in by_task(found) for policy, figures in policies.items()]
    if not rows:
        return ["## Success", "", "Not measured: this run acted in no simulator.", ""]
    return [f"## Success{_of_step(at, step)}", "", *_table(
        ("task", "policy", "success", "95% interval (Wilson)", "episodes"), rows),
        "On seeds that training never used. `greedy` and `sampled` are the agent, `bot` the simulator's expert, the "
        "others random actions.", ""]


def _held_out(step: int, report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables of validation losses and of scores on recorded data."""
    recorded = [one for one in metrics if one.get("split") == "validation" and one["step"] <= step]
    lines = []
    if recorded:
        last = recorded[-1]
        by_domain = {"all": last["losses"], **last.get("domains", {})}
        names = [name for name, value in last["losses"].items() if value is not None]
        rows = [(domain, *("" if losses.get(name) is None else f"{losses[name]:.4g}" for name in names))
                for domain, losses in by_domain.items()]
        lines += [f"## Held-out data{_of_step(last['step'], step)}", "", *_table(("domain", *names), rows)]
    scores = []
    for domain, one in report.get("evaluation", {}).items():
        generated = one.get("generated") or {}
        values = {f"{kind}{name}": value for kind, part in (
            ("", one.get("classes")), ("class_", one.get("classes")), ("language_", one.get("language")),
            ("", generated.get("metrics"))) for name, value in (part or {}).items()}
        for name, (low, high) in {**one.get("intervals", {}), **generated.get("intervals", {})}.items():
            if isinstance(values.get(name), (int, float)):
                scores.append((domain, name, f"{values[name]:.4g}", f"{low:.4g} to {high:.4g}", one["recordings"]))
    if scores:
        lines += [f"## Scores on recordings{_of_step(report.get('steps', step), step)}", "", *_table(
            ("domain", "metric", "value", "95% interval (bootstrap)", "recordings"), scores)]
    return lines


def _command(report: Mapping[str, Any]) -> list[str]:
    if not report:
        return []
    command = re.sub(r"^\S*agent_jax/(\w+)/__main__\.py", r"python -m agent_jax.\1", report.get("command", ""))
    start = report.get("start", "fresh parameters").partition("\n")[0]
    versions = ", ".join(f"{name} {value}" for name, value in report.get("machine", {}).items())
    return ["## How it was trained", "", f"{report.get('parameters', 0):,} parameters, {report.get('steps', 0):,} "
            f"steps, from {start}.", "", "```", command, "```", "",
            f"On: {versions}, {report.get('date', '')}.", ""]


def _of_step(found: int, step: int) -> str:
    return "" if found == step else f" (of step {found:,}; the parameters here are of step {step:,})"
