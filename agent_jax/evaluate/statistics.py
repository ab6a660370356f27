"""Success rates with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def success_summary(successes: np.ndarray) -> dict[str, Any]:
    """{"success": rate, "episodes": N, "ci95": [low, high]} of one boolean an episode.

    The interval is Wilson's (1927, eq. 4): unlike rate +- 1.96 standard errors it stays within [0, 1] and has a width
    at 0 of N and N of N.

    Raises:
        ValueError: no episodes, or values other than booleans.
    """
    successes = np.asarray(successes)
    if successes.dtype != np.bool_ or successes.ndim != 1 or not successes.size:
        raise ValueError(
            f"successes: found {successes.dtype} of shape {successes.shape}, expected booleans, one an episode"
        )
    from scipy.stats import binomtest  # imported here because it takes long and training imports this module

    interval = binomtest(int(successes.sum()), successes.size).proportion_ci(0.95, method="wilson")
    return {
        "success": float(successes.mean()),
        "episodes": int(successes.size),
        "ci95": [float(interval.low), float(interval.high)],
    }


def paired_summary(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """The difference of two success rates of the same episodes, after - before.

    Returns:
        {"difference", "ci95": [low, high], "p", "episodes", "lost", "gained"}: p of McNemar's exact test (two-sided),
        the episodes that succeed before only and after only. The interval is Newcombe's (1998, Statistics in Medicine
        17, 2635, method 10): it comes from Wilson's intervals of both rates and stays within [-1, 1].

    Raises:
        ValueError: no episodes, or two arrays of other than equally many booleans.
    """
    before, after = np.asarray(before), np.asarray(after)
    if before.shape != after.shape:
        raise ValueError(f"pairs: found {before.shape} and {after.shape} episodes, expected equally many")
    one, other = success_summary(before), success_summary(after)
    from scipy.stats import binomtest  # as above

    both, neither = int((before & after).sum()), int((~before & ~after).sum())
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    # The correlation of the pairs, with Newcombe's correction for continuity where it is positive.
    product = both * neither - lost * gained
    product = max(product - before.size / 2, 0) if product > 0 else product
    correlation = product / margins**0.5 if margins else 0.0
    rates = other["success"], one["success"]
    down, up = (
        sum(distance**2 for distance in (to, back)) - 2 * correlation * to * back
        for to, back in ((rates[0] - other["ci95"][0], one["ci95"][1] - rates[1]),
                         (other["ci95"][1] - rates[0], rates[1] - one["ci95"][0]))
    )
    difference = rates[0] - rates[1]
    return {
        "difference": difference,
        "ci95": [difference - max(down, 0) ** 0.5, difference + max(up, 0) ** 0.5],
        "p": float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0,
        "episodes": one["episodes"],
        "lost": lost,
        "gained": gained,
    }


def paired_loss_bound(before: np.ndarray, after: np.ndarray) -> float:
    """The most of the success rate that `after` may lose against `before`, with 95% confidence, by exact bounds.

    The loss is the share of episodes that succeed before only, minus the share that succeed after only. The upper bound
    of one and the lower bound of the other (Clopper and Pearson, 1934), at 2.5% each, hold together with 95%
    (Bonferroni).
    """
    from scipy.stats import binomtest  # as above

    lost, gained = (binomtest(int(one.sum()), one.size).proportion_ci(0.95, method="exact")
                    for one in (before & ~after, ~before & after))
    return float(lost.high - gained.low)


def repeats_summary(rates: np.ndarray) -> dict[str, Any]:
    """{"repeats": success rates, "std": their sample standard deviation (0 of one)}, as the paper repeats episodes."""
    return {"repeats": [float(rate) for rate in rates], "std": float(np.std(rates, ddof=1)) if len(rates) > 1 else 0.0}


def mean_over_tasks(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean success of several tasks, each with the same weight, and of their repeats if they have equally many."""
    mean: dict[str, Any] = {"success": float(np.mean([one["success"] for one in summaries])), "tasks": len(summaries)}
    repeats = [one["repeats"] for one in summaries if "repeats" in one]
    if len(repeats) == len(summaries) and len(set(map(len, repeats))) == 1:
        mean |= repeats_summary(np.mean(repeats, axis=0))
    return mean


def chain_summary(completed: np.ndarray, instructions: int) -> dict[str, Any]:
    """{"in_a_row": [success_summary of at least 1, 2, ... instructions], "mean_length": mean of `completed`}.

    As in CALVIN (Mees et al. 2022): an episode is a chain of instructions that ends with the first failure.

    Args:
        completed: number of completed instructions of each episode.
        instructions: number of instructions of a chain.

    Raises:
        ValueError: no episodes, or a number outside 0 to `instructions`.
    """
    completed = np.asarray(completed)
    if not completed.size or completed.min() < 0 or completed.max() > instructions:
        raise ValueError(f"completed: found {completed}, expected numbers from 0 to {instructions}, one an episode")
    return {"in_a_row": [success_summary(completed >= k) for k in range(1, instructions + 1)],
            "mean_length": float(completed.mean())}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method (1979): p < alpha keeps the family's error below alpha."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.zeros(len(p_values))
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return [float(one) for one in adjusted]
