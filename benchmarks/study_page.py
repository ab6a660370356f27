"""The page benchmarks/results/studies.md: what the studies of benchmarks/study showed.

    python -m agent_jax.study transfer benchmarks/study/transfer.py --out STUDY
    python benchmarks/study_page.py STUDY benchmarks/study/transfer.py

packs the plan and the outcome of every episode into benchmarks/results/studies/NAME.json and writes the page, with
curves, from these files. Without arguments it writes the page again. Every figure of the page is computed from the
outcomes by the code that reports a study.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from agent_jax.json_files import read_json_object, write_json
from agent_jax.study.plan import PLAN_FILE, TransferPlan, canonical, plan_of
from agent_jax.study.plots import plot_curves
from agent_jax.study.report import report_markdown
from agent_jax.study.results import check_same_conditions, counted_outcomes, results_of_scores
from agent_jax.study.runs import missing_runs, runs_of

RESULTS = Path(__file__).resolve().parent / "results"
HEAD = """# Studies

Written by `python benchmarks/study_page.py` from the plans and outcomes in [studies](studies); do not edit. What a
study is, and how to read the tables: [study](../../docs/guides/study.md).
"""


def packed(directory: Path, plan_file: str) -> dict[str, Any]:
    """The plan of a study and the outcomes of its finished runs, by run and task, as texts of 0 and 1."""
    frozen = read_json_object(directory / PLAN_FILE)
    plan = plan_of(frozen["plan"])
    runs = runs_of(plan)
    reports = {run.name: report for run in runs if (report := run.report(directory)) is not None}
    acted = {run.name: reports[run.name] for run in runs if run.acts and run.name in reports}
    check_same_conditions(plan, acted)
    return {
        "frozen": frozen,
        "command": f"python -m agent_jax.study transfer {plan_file} --out runs/{plan.name}",
        "on": describe(accelerators=False)["cpu"],
        "date": max(report["date"] for report in acted.values()),
        "hours": sum(sum(report["seconds"].values()) for report in reports.values()) / 3600,
        "runs": len(reports),
        "missing_runs": [run.name for run in missing_runs(runs, directory)],
        "outcomes": {name: {task: "".join(str(int(one)) for one in successes)
                            for task, successes in outcomes_of(plan, name, report).items()}
                     for name, report in acted.items()},
    }


def outcomes_of(plan: TransferPlan, run: str, report: Mapping[str, Any]) -> dict[str, list[bool]]:
    """The successes of a run's episodes that count, by task."""
    return counted_outcomes(report, plan.targets[run.split("/")[0]], plan.policy, run)


def results(study: Mapping[str, Any]) -> dict[str, Any]:
    """All results of a packed study, from its outcomes.

    Raises:
        ValueError: plan and SHA-256 do not belong together.
    """
    content = {key: value for key, value in study["frozen"].items() if key != "sha256"}
    if hashlib.sha256(canonical(content).encode()).hexdigest() != study["frozen"]["sha256"]:
        raise ValueError(f"{study['command']}: the plan is not that of its SHA-256; pack the study again")
    plan = plan_of(content["plan"])
    scores = {run: float(np.mean([np.mean([one == "1" for one in text]) for text in tasks.values()]))
              for run, tasks in study["outcomes"].items()}
    return {"plan": plan.name, "sha256": study["frozen"]["sha256"], "missing_runs": study["missing_runs"],
            **results_of_scores(plan, scores)}


def page(studies: Mapping[str, Mapping[str, Any]], out: Path) -> str:
    """The page as Markdown; draws the curves of studies that have some."""
    parts = [HEAD]
    for name, study in studies.items():
        found, picture = results(study), ""
        if any(found["curves"].values()):
            picture = f"studies/{name}.svg"
            plot_curves(out / picture, found["curves"])
        title, plan, *rest = report_markdown(found, picture).split("\n\n")
        parts.append("\n\n".join([
            f"#{title}", f"    {study['command']}",
            f"{study['on']}, {study['date'][:10]}; {study['runs']} runs, {study['hours']:.1f} hours in all.", plan,
            *rest]))
    return "\n".join(parts)


def main() -> None:
    """Pack a study, if one is given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, help="directory of a study")
    parser.add_argument("plan", nargs="?", help="its plan file, as the page shall name it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of studies/ and studies.md")
    options = parser.parse_args()
    folder = options.out / "studies"
    folder.mkdir(exist_ok=True)
    if options.study:
        if not options.plan:
            parser.error(f"plan: found none beside {options.study}, expected the study's plan file")
        study = packed(options.study, options.plan)
        write_json(folder / f"{study['frozen']['plan']['name']}.json", study)
    studies = {path.stem: read_json_object(path) for path in sorted(folder.glob("*.json"))}
    (options.out / "studies.md").write_text(page(studies, options.out), encoding="utf-8")


if __name__ == "__main__":
    main()
