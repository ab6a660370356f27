"""Success rates with their uncertainty."""

from __future__ import annotations

from typing import Any

import numpy as np


def success_summary(successes: np.ndarray) -> dict[str, Any]:
    """{"success": rate, "episodes": N, "ci95": [low, high]} of one boolean an episode.

    The interval is Wilson's (1927, eq. 4): unlike rate +- 1.96 standard errors it stays within [0, 1] and has a width
    at 0 of N and N of N.

    Raises:
        ValueError: there are no episodes, or something other than booleans.
    """
    successes = np.asarray(successes)
    if successes.dtype != np.bool_ or successes.ndim != 1 or not successes.size:
        raise ValueError(
            f"successes: found {successes.dtype} of shape {successes.shape}, expected booleans, one an episode"
        )
    from scipy.stats import binomtest  # a fifth of all that training would import at its start

    interval = binomtest(int(successes.sum()), successes.size).proportion_ci(0.95, method="wilson")
    return {
        "success": float(successes.mean()),
        "episodes": int(successes.size),
        "ci95": [float(interval.low), float(interval.high)],
    }


def chain_summary(completed: np.ndarray, instructions: int) -> dict[str, Any]:
    """{"in_a_row": [success_summary of at least 1, of 2, ... instructions], "mean_length": of chains}.

    As CALVIN (Mees et al. 2022) reports it: an episode is a chain of instructions that ends with the first failure.

    Args:
        completed: instructions carried out, one number an episode.
        instructions: of each chain.

    Raises:
        ValueError: there are no episodes, or numbers that no chain of this length has.
    """
    completed = np.asarray(completed)
    if not completed.size or completed.min() < 0 or completed.max() > instructions:
        raise ValueError(f"completed: found {completed}, expected numbers from 0 to {instructions}, one an episode")
    return {"in_a_row": [success_summary(completed >= k) for k in range(1, instructions + 1)],
            "mean_length": float(completed.mean())}
