"""What the finished runs of a study show: scores by run, paired differences, curves, verdicts.

report.json of every run --score--> success by (target, K, arm, seed) --> comparisons by target, few-shot curves
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.evaluate.statistics import holm
from agent_jax.study.plan import Comparison, Target, TransferPlan
from agent_jax.study.runs import StudyRun, missing_runs, target_run_name
from agent_jax.study.statistics import difference_summary, smallest_detectable, t_interval

Scores = dict[str, float]  # by the name of a run; unfinished runs are missing


def study_results(plan: TransferPlan, sha256: str, runs: Sequence[StudyRun], directory: Path) -> dict[str, Any]:
    """All results as JSON.

    Raises:
        ValueError: a report lacks a task or the policy, or runs of one comparison had other demonstrations or episodes.
    """
    reports = {run.name: report for run in runs if run.acts and (report := run.report(directory)) is not None}
    check_same_conditions(plan, reports)
    scores = {name: score(report, plan.targets[name.split("/")[0]], plan.policy, name)
              for name, report in reports.items()}
    return {"plan": plan.name, "sha256": sha256,
            "missing_runs": [run.name for run in missing_runs(runs, directory)], **results_of_scores(plan, scores)}


def results_of_scores(plan: TransferPlan, scores: Scores) -> dict[str, Any]:
    """The part of the results that follows from plan and scores: comparisons and curves."""
    return {
        "policy": plan.policy,
        "comparisons": {name: _compare(plan, comparison, scores) for name, comparison in plan.comparisons.items()},
        "curves": _curves(plan, scores),
        "scores": scores,
    }


def score(report: Mapping[str, Any], target: Target, policy: str, where: str) -> float:
    """The success of a run on its target: the mean over tasks. Raises ValueError as `counted_outcomes`."""
    return float(np.mean([np.mean(counted) for counted in counted_outcomes(report, target, policy, where).values()]))


def counted_outcomes(report: Mapping[str, Any], target: Target, policy: str, where: str) -> dict[str, list[bool]]:
    """The successes of the episodes that count, by task, in the order of their seeds.

    Raises:
        ValueError: the report lacks a task, the policy, or episodes that count.
    """
    found = {}
    for task in target.episodes:
        try:
            summary = report["closed_loop"][task][policy]
            episodes = summary["per_episode"]
        except KeyError as error:
            raise ValueError(f"{where}: its report has no {error}, expected the episodes of {policy!r} on {task!r}; "
                             "delete its report.json and run the study again") from error
        counted = [bool(one["success"]) for one in episodes
                   if not target.reached_before or one["steps"] < target.reached_before]
        if not counted:
            raise ValueError(f"{where}, task {task!r}: none of {len(episodes)} episodes ends before step "
                             f"{target.reached_before} (reached_before), so there is no success to count")
        found[task] = counted
    return found


def check_same_conditions(plan: TransferPlan, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that runs that differ in their arm alone had the same demonstrations and episodes.

    Raises:
        ValueError: names the runs and the field.
    """
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for name, report in reports.items():
        target, k, run = name.split("/")
        group = f"{target}/{k}/seed{run.rpartition('-seed')[2]}"
        found = _conditions(report, plan.policy)
        other, expected = first.setdefault(group, (name, found))
        for field in expected:
            if found.get(field) != expected[field]:
                raise ValueError(f"{name} and {other}: {field} differs, expected the same in all arms; an arm's "
                                 "overrides must not change demonstrations or episodes")


def _conditions(report: Mapping[str, Any], policy: str) -> dict[str, Any]:
    config = report["config"]
    tasks = report["closed_loop"]
    episodes = {task: sorted([one["seed"] for one in policies[policy]["per_episode"]]
                             + [one["seed"] for one in policies[policy]["lost"]])
                for task, policies in tasks.items() if policy in policies}
    demonstrations = _demonstrations(config["data"])
    domains = {name: {"path": domain["path"], **_demonstrations(domain)}
               for name, domain in config["data"]["domains"].items()}
    return {"config.data.demonstrations": demonstrations, "config.data.domains: path or demonstrations": domains,
            "config.closed_loop.episodes": config["closed_loop"]["episodes"],
            "config.closed_loop.seed": config["closed_loop"]["seed"], "seeds of the episodes": episodes}


def _demonstrations(group: Mapping[str, Any]) -> dict[str, Any]:
    """What decides on the demonstrations of a group of config fields."""
    return {key: value for key, value in group.get("demonstrations", {}).items() if key != "processes"}


def _compare(plan: TransferPlan, comparison: Comparison, scores: Scores) -> dict[str, Any]:
    """One comparison: its differences by target, with Holm's adjustment over all its targets."""
    targets: dict[str, dict[str, Any]] = {}
    names = plan.targets_of(comparison)
    for target in names:
        k = plan.targets[target].demonstrations[comparison.demonstrations]
        pairs = {}
        for seed in comparison.seeds:
            arm, baseline = (scores.get(target_run_name(target, k, one, seed))
                             for one in (comparison.arm, comparison.baseline))
            if arm is not None and baseline is not None:
                pairs[seed] = arm, baseline
        found: dict[str, Any] = {"demonstrations": k, "planned_seeds": len(comparison.seeds),
                                 "pairs": {str(seed): list(pair) for seed, pair in pairs.items()}}
        if len(pairs) >= 2:
            differences = [arm - baseline for arm, baseline in pairs.values()]
            found |= difference_summary(differences, margin=comparison.margin, alpha=plan.alpha)
            # At the level of Holm's first step, which is the strictest.
            found["smallest_detectable"] = smallest_detectable(found["std"], len(pairs), alpha=plan.alpha / len(names),
                                                               power=plan.power)
            found["arm"], found["baseline"] = (float(np.mean(side)) for side in zip(*pairs.values(), strict=True))
        targets[target] = found
    # A target that has no two pairs yet counts as a test as well, so a verdict does not change when it is finished.
    for target, p in zip(names, holm([targets[target].get("p", 1.0) for target in names]), strict=True):
        if "p" in targets[target]:
            targets[target]["p_holm"] = p
    for found in targets.values():
        found["verdict"] = verdict(found, comparison, plan.alpha)
    return {"arm": comparison.arm, "baseline": comparison.baseline, "margin": comparison.margin, "targets": targets}


def verdict(found: Mapping[str, Any], comparison: Comparison, alpha: float) -> str:
    """The verdict of a comparison on a target.

    "helps" and "hurts" need Holm's p below alpha and an interval without 0; "no difference within M" the test of
    equivalence; anything else is undecided. Unfinished comparisons have no verdict.
    """
    done, planned = len(found["pairs"]), found["planned_seeds"]
    if done < planned:
        return f"unfinished: {done} of {planned} seeds"
    low, high = found["ci"]
    if found["p_holm"] < alpha and (low > 0 or high < 0):
        return "helps" if found["mean"] > 0 else "hurts"
    if found["p_equivalence"] < alpha:
        return f"no difference within {comparison.margin:.1%}"
    return "undecided"


def _curves(plan: TransferPlan, scores: Scores) -> dict[str, Any]:
    """Mean success by number of demonstrations, with t-intervals over training seeds: TARGET -> ARM -> points.

    The intervals are cut at 0 and 1, which a success rate cannot leave.
    """
    curves: dict[str, Any] = {}
    for target, entry in plan.targets.items():
        curves[target] = {}
        for arm in plan.curve_arms:
            points = []
            for k in entry.demonstrations:
                found = [scores[name] for seed in plan.curve_seeds
                         if (name := target_run_name(target, k, arm, seed)) in scores]
                if found:
                    band = np.clip(t_interval(found, 1 - plan.alpha), 0, 1).tolist() if len(found) > 1 else None
                    points.append({"demonstrations": k, "seeds": len(found), "mean": float(np.mean(found)),
                                   "ci": band})
            if points:
                curves[target][arm] = points
    return curves
