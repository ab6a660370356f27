"""The runs of a study, and doing those that are missing.

    plan --> pretrain/ARM-seed0        runs that others start from
             TARGET/k30/ARM-seed1      one for each target, number of demonstrations, arm and training seed

Each run is `python -m agent_jax.train` in a process of its own and its own workdir, so a killed study continues with
the steps that were saved. A run is finished when its report.json is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_jax.config import from_config_dict
from agent_jax.json_files import read_json_object
from agent_jax.study.plan import Arm, TransferPlan, canonical
from agent_jax.study.run_config import CONFIG_FILE, changed_config, write_run_config

RUNS, REPORT_FILE, LOG_FILE = "runs", "report.json", "log.txt"
_POLL = 0.2  # seconds


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One training run."""

    name: str  # of its workdir below runs/
    config: str  # the base config file
    values: Mapping[str, Any]  # by field, what differs from the base config
    steps: int
    start: str = ""  # name of the run whose checkpoint it starts from; "": from scratch
    acts: bool = False  # whether its report has a closed loop

    def workdir(self, directory: Path) -> Path:
        """Its workdir in a study's directory."""
        return directory / RUNS / self.name

    def report(self, directory: Path) -> dict[str, Any] | None:
        """Its report.json; None if the run is not finished."""
        path = self.workdir(directory) / REPORT_FILE
        if not path.exists():
            return None
        report = read_json_object(path)
        return report if report.get("closed_loop") or not self.acts else None


def target_run_name(target: str, demonstrations: int, arm: str, seed: int) -> str:
    """The name of a run on a target."""
    return f"{target}/k{demonstrations}/{arm}-seed{seed}"


def runs_of(plan: TransferPlan) -> list[StudyRun]:
    """All runs of a plan: primary comparison, secondary ones, curves; each pre-training before its first use.

    Raises:
        ValueError: a config of a run has a field or value that cannot be.
    """
    wanted: dict[tuple[str, int, str, int], None] = {}  # target, number of demonstrations, arm, seed
    places: dict[str, list[int]] = {arm: [] for arm in plan.arms}  # the training seeds of each arm, in order
    for comparison in plan.comparisons.values():
        for target in plan.targets_of(comparison):
            k = plan.targets[target].demonstrations[comparison.demonstrations]
            for seed in comparison.seeds:
                wanted |= {(target, k, arm, seed): None for arm in (comparison.baseline, comparison.arm)}
    for target, entry in plan.targets.items():
        wanted |= {(target, k, arm, seed): None for k in entry.demonstrations for arm in plan.curve_arms
                   for seed in plan.curve_seeds}
    for _, _, arm, seed in wanted:
        places[arm] += [seed] if seed not in places[arm] else []
    pretrainings: dict[str, StudyRun] = {}  # by content
    runs: dict[str, StudyRun] = {}
    for target, k, arm, seed in wanted:
        start = _pretraining(plan.arms[arm], arm, sorted(places[arm]).index(seed), pretrainings)
        for run in (start, _target_run(plan, target, k, arm, seed, start.name if start else "")):
            if run:
                runs[run.name] = run
    return list(runs.values())


def _pretraining(arm: Arm, name: str, place: int, known: dict[str, StudyRun]) -> StudyRun | None:
    """The run that an arm starts from; equal pre-trainings of several arms are one run."""
    if not arm.pretrain:
        return None
    seed = arm.pretrain_seeds[place % len(arm.pretrain_seeds)]
    values = {**arm.pretrain_overrides, "seed": seed}
    content = canonical([arm.pretrain, json.loads(json.dumps(values))])
    if content not in known:
        config = changed_config(arm.pretrain, values, f"plan.arms.{name}.pretrain_overrides")
        known[content] = StudyRun(f"pretrain/{name}-seed{seed}", arm.pretrain, values, config.train.steps)
    return known[content]


def _target_run(plan: TransferPlan, target: str, k: int, arm: str, seed: int, start: str) -> StudyRun:
    entry, steps = plan.targets[target], plan.arms[arm].steps.get(target, plan.targets[target].steps)
    overrides, where = {**entry.overrides, **plan.arms[arm].overrides}, f"plan.arms.{arm}.overrides, on {target}"
    config = from_config_dict(changed_config(entry.config, overrides, where))
    if len(gathered := list(config.data.gathered)) != 1 or not config.closed_loop.environment:
        raise ValueError(f"plan.targets.{target}.config={entry.config}: found demonstrations of "
                         f"{', '.join(gathered) or 'no domain'} and closed_loop.environment="
                         f"{config.closed_loop.environment!r}; expected one domain whose demonstrations are gathered, "
                         "and an environment to act in")
    demonstrations = config.data.demonstrations_field(gathered[0]).removeprefix("config.")
    values = {
        **overrides, "seed": seed, "train.steps": steps,
        f"{demonstrations}.episodes": split_over_levels(k, entry.levels),
        f"{demonstrations}.seed": seed,  # of its own for each training seed, the same in all arms
        "closed_loop.episodes": dict(entry.episodes), "closed_loop.video": False, "closed_loop.baselines": False,
    }
    changed_config(entry.config, values, where)
    return StudyRun(target_run_name(target, k, arm, seed), entry.config, values, steps, start, acts=True)


def split_over_levels(k: int, levels: Mapping[str, float]) -> dict[str, int]:
    """`k` demonstrations by level: the rounded-down shares, the rest to the largest remainders; none has 0.

    Raises:
        ValueError: fewer demonstrations than levels.
    """
    if k < len(levels):
        raise ValueError(f"demonstrations: found {k} for {len(levels)} levels, expected at least one of each")
    counts = {level: max(1, math.floor(k * share + 1e-9)) for level, share in levels.items()}
    while (difference := k - sum(counts.values())) != 0:
        order = sorted(levels, key=lambda level: counts[level] - k * levels[level])  # the most is missing first
        level = order[0] if difference > 0 else next(one for one in reversed(order) if counts[one] > 1)
        counts[level] += 1 if difference > 0 else -1
    return counts


def missing_runs(runs: Sequence[StudyRun], directory: Path) -> list[StudyRun]:
    """The runs that are not finished."""
    return [run for run in runs if run.report(directory) is None]


def do_runs(runs: Sequence[StudyRun], directory: Path, *, processes: int, log: Callable[[str], None] = print
            ) -> list[str]:
    """Do the missing runs, each when the run that it starts from is finished.

    Args:
        runs: of the study.
        directory: of the study.
        processes: runs at a time.
        log: called with a line at each begin and end.

    Returns:
        What failed, a message for each run; runs that start from a failed one are among them.

    Raises:
        ValueError: `processes` below 1.
    """
    if processes < 1:
        raise ValueError(f"processes={processes}: expected at least 1 run at a time")
    waiting = missing_runs(runs, directory)
    number, failures, failed = len(waiting), [], set[str]()
    unfinished = {run.name for run in waiting}
    running: dict[str, tuple[StudyRun, subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            for run in [run for run in waiting if run.start in failed]:
                waiting.remove(run)
                failed.add(run.name)
                failures.append(f"{run.name}: not begun, because {run.start} failed")
            ready = [run for run in waiting if run.start not in unfinished]
            for run in ready[: processes - len(running)]:
                waiting.remove(run)
                log(f"begins: {run.name}, {run.steps} steps")
                running[run.name] = run, _start(run, directory), time.monotonic()
            for name, (run, process, begun) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode == 0 and run.report(directory) is not None:
                    unfinished.discard(name)
                    left = number - len(failed) - sum(run.name in unfinished for run in runs)
                    log(f"finished: {name}, {time.monotonic() - begun:.0f} s ({left} of {number} runs)")
                else:
                    failed.add(name)
                    failures.append(_failure(run, process.returncode, directory))
                    log(failures[-1])
            time.sleep(_POLL if running else 0)
    finally:
        _end([process for _, process, _ in running.values()])
    return failures


def _start(run: StudyRun, directory: Path) -> subprocess.Popen[bytes]:
    workdir = run.workdir(directory)
    start = {"init.checkpoint": str((directory / RUNS / run.start).resolve())} if run.start else {}
    write_run_config(workdir, run.config, {**run.values, **start})
    command = [sys.executable, "-m", "agent_jax.train", "--config", str(workdir / CONFIG_FILE),
               "--workdir", str(workdir)]
    with (workdir / LOG_FILE).open("ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def _failure(run: StudyRun, status: int, directory: Path) -> str:
    path = run.workdir(directory) / LOG_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"{run.name}: failed with status {status}; {path} ends with: {' | '.join(lines[-3:])}"


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End running processes: SIGTERM lets a training save; SIGKILL after a minute."""
    for process in processes:
        process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()
