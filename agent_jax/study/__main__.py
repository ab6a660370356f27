"""`python -m agent_jax.study`: studies of several training runs.

transfer PLAN.py --out DIR [--processes N] [--dry_run] [--report_only]
    fix the plan, do the runs that are missing, report. The same command continues a study that was killed
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from agent_jax.study.plan import freeze, frozen_form, load_plan
from agent_jax.study.report import report_text, write_report
from agent_jax.study.results import study_results
from agent_jax.study.runs import StudyRun, do_runs, missing_runs, runs_of
from agent_jax.text_table import ruled


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 if runs failed, 2 for a user error."""
    parser = argparse.ArgumentParser(prog="python -m agent_jax.study", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", required=True)
    transfer = subparsers.add_parser("transfer", help="does pre-training help?", allow_abbrev=False)
    transfer.add_argument("plan", metavar="PLAN.py", help="a file whose get_plan() returns a TransferPlan")
    transfer.add_argument("--out", required=True, metavar="DIR", help="directory of the study")
    transfer.add_argument("--processes", type=int, default=1, metavar="N", help="runs at a time")
    transfer.add_argument("--dry_run", action="store_true", help="print the runs and their steps; write nothing")
    transfer.add_argument("--report_only", action="store_true", help="do no runs")
    options = parser.parse_args(arguments)
    try:
        return _transfer(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 2


def _transfer(options: argparse.Namespace) -> int:
    plan, directory = load_plan(options.plan), Path(options.out)
    runs = runs_of(plan)
    if options.dry_run:
        _log(f"plan: {plan.name}, SHA-256 {frozen_form(plan)['sha256']}")
        _log(_runs_table(runs, directory))
        return 0
    if options.processes < 1:
        raise ValueError(f"--processes {options.processes}: expected at least 1 run at a time")
    sha256 = freeze(plan, directory)
    _log(f"plan: {plan.name}, SHA-256 {sha256}")
    failures = [] if options.report_only else do_runs(runs, directory, processes=options.processes, log=_log)
    results = study_results(plan, sha256, runs, directory)
    written = write_report(results, directory)
    _log(report_text(results))
    _log(f"written: {', '.join(map(str, written))}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _runs_table(runs: Sequence[StudyRun], directory: Path) -> str:
    missing = {run.name for run in missing_runs(runs, directory)}
    rows = [("run", "starts from", "steps", "state")]
    rows += [(run.name, run.start, f"{run.steps:,}", "missing" if run.name in missing else "finished") for run in runs]
    steps = sum(run.steps for run in runs if run.name in missing)
    return (f"{ruled(rows, words=2)}\n"
            f"{len(missing)} of {len(runs)} runs are missing, {steps:,} steps")


def _log(text: str) -> None:
    print(text, flush=True)


def _end_by_sigterm(number: int, frame: Any) -> NoReturn:
    """Leave by an exception, so that the runs in progress are ended and save."""
    del frame
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end_by_sigterm)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
