"""`python -m agent_jax.study`: studies of several training runs.

transfer PLAN.py --out DIR [--processes N] [--dry_run] [--report_only]
    fix the plan, do the runs that are missing, report. The same command continues a study that was killed
verify WORKDIR [--steps N] [--episodes N] [--validations N] [--seed S] [--tolerance T] [--json PATH]
    execute training steps and episodes of a run again, and compare losses and outcomes with the recorded ones. Exit
    status 1 if they differ
rank WORKDIR ... [--domain NAME] [--episodes N] [--rows N] [--steps S ...] [--json PATH]
    BLEU-4, action accuracy and NLL of checkpoints against their success in the simulator: Kendall's tau
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from agent_jax.json_files import json_path, write_json
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
    _add_verify(subparsers.add_parser("verify", help="is a run what it recorded?", allow_abbrev=False))
    _add_rank(subparsers.add_parser("rank", help="do offline metrics rank as success does?", allow_abbrev=False))
    options = parser.parse_args(arguments)
    try:
        return {"transfer": _transfer, "verify": _verify, "rank": _rank}[options.command](options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # a damaged checkpoint is a RuntimeError
        print(f"error: {error}", file=sys.stderr)
    return 2


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", help="of a run; nothing is written into it")
    parser.add_argument("--steps", type=int, default=20, metavar="N",
                        help="training steps to execute again, or a few more, up to a log line (default 20)")
    parser.add_argument("--episodes", type=int, default=10, metavar="N",
                        help="episodes of report.json to repeat (default 10)")
    parser.add_argument("--validations", type=int, default=1, metavar="N",
                        help="validations at checkpoints to repeat (default 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws")
    parser.add_argument("--tolerance", type=float, default=1e-3, metavar="T",
                        help="relative difference of losses that counts as equal on another machine (default 0.001)")
    parser.add_argument("--json", type=json_path, metavar="PATH", help="also write the result here")


def _verify(options: argparse.Namespace) -> int:
    from agent_jax.study.verify import DIFFERENT, format_result, verify  # imports the training

    workdir = Path(options.workdir).expanduser()
    if options.json and options.json.resolve().is_relative_to(workdir.resolve()):
        raise ValueError(f"--json {options.json}: is in the workdir, where nothing is written; choose another path")
    result = verify(workdir, steps=options.steps, episodes=options.episodes,
                    validations=options.validations, seed=options.seed, tolerance=options.tolerance)
    _log(format_result(result))
    if options.json:
        write_json(options.json, result)
        _log(f"written: {options.json}")
    return 1 if result["verdict"] == DIFFERENT else 0


def _add_rank(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of runs, or single steps of their checkpoints")
    parser.add_argument("--domain", default="", help="default: every domain that the runs evaluate in a simulator")
    parser.add_argument("--episodes", type=int, default=100, metavar="N", help="of each task (default 100)")
    parser.add_argument("--rows", type=int, default=256, metavar="N",
                        help="rows of the validation split, at most; 0: all (default 256)")
    parser.add_argument("--steps", type=int, nargs="+", default=[], metavar="S", help="checkpoints; default: all")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the bootstrap")
    parser.add_argument("--json", type=json_path, metavar="PATH", help="also write the result here")


def _rank(options: argparse.Namespace) -> int:
    from agent_jax.study.rank import format_ranks, rank  # imports the training

    result = rank([Path(path).expanduser() for path in options.workdirs], domain=options.domain, steps=options.steps,
                  episodes=options.episodes, rows=options.rows, seed=options.seed, log=_log)
    _log(format_ranks(result))
    if options.json:
        write_json(options.json, result)
        _log(f"written: {options.json}")
    return 0


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
