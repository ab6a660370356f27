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
