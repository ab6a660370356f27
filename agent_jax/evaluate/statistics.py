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
