"""Statistics of paired differences over training seeds, and of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


def t_interval(values: Sequence[float], level: float) -> tuple[float, float]:
    """The t-interval of a mean; (nan, nan) of fewer than two values."""
    from scipy.stats import t  # imported here because it takes long

    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    mean, half = float(np.mean(values)), float(t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return mean - half, mean + half


def difference_summary(differences: Sequence[float], *, margin: float, alpha: float) -> dict[str, Any]:
    """A paired difference: its mean, t-interval, t-test, and test of equivalence.

    Args:
        differences: arm - baseline, one for each training seed; at least two.
        margin: smaller differences count as none.
        alpha: the interval has the level 1 - alpha, `equivalence_interval` 1 - 2 alpha.

    Returns:
        {"seeds": number, "mean", "std", "ci": [low, high], "p": of the two-sided paired t-test, "p_equivalence": the
        larger of the two one-sided tests' (TOST; Schuirmann 1987), "equivalence_interval": within the margin exactly if
        p_equivalence < alpha}.
    """
    from scipy.stats import ttest_1samp  # as above

    values = np.asarray(differences, float)
    values = np.where(np.abs(values - values[0]) < 1e-12, values[0], values)  # equal to rounding: no deviation at all
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # equal differences: the statistic is infinite, or 0 / 0
        tests: list[Any] = [ttest_1samp(values, 0), ttest_1samp(values, -margin, alternative="greater"),
                            ttest_1samp(values, margin, alternative="less")]
    ones = [1.0 if np.isnan(one.pvalue) else float(one.pvalue) for one in tests]
    return {
        "seeds": len(values), "mean": float(values.mean()), "std": float(values.std(ddof=1)),
        "ci": list(t_interval(list(values), 1 - alpha)), "p": ones[0], "p_equivalence": max(ones[1:]),
        "equivalence_interval": list(t_interval(list(values), 1 - 2 * alpha)),
    }


def smallest_detectable(std: float, seeds: int, *, alpha: float, power: float) -> float:
    """The smallest true difference that the two-sided paired t-test finds with this power.

    Args:
        std: of the paired differences.
        seeds: number of pairs, at least two.
        alpha: of the test.
        power: probability of p < alpha.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    if std == 0:
        return 0.0
    critical = t.ppf(1 - alpha / 2, seeds - 1)

    def missing(shift: float) -> float:
        """Power that is missing at a difference of `shift` standard errors."""
        # The lower tail by symmetry: scipy's nct.cdf is NaN far below the mode.
        found = nct.sf(critical, seeds - 1, shift) + nct.sf(critical, seeds - 1, -shift)
        return float(power - found)

    upper = 2.0 * float(critical)
    while missing(upper) > 0:
        upper *= 2
    shift: Any = brentq(missing, 0.0, upper)
    return float(shift * std / np.sqrt(seeds))


def kendall_summary(metric: Sequence[float], success: Sequence[float], seed: int) -> dict[str, Any]:
    """Kendall's tau-b (1945) of two values of each checkpoint.

    Args:
        metric: of each checkpoint, larger for a better one.
        success: of each checkpoint.
        seed: of the bootstrap.

    Returns:
        {"checkpoints": n, "tau", "p", "ci95": [low, high]}. tau and p are None if all values of a side are equal. The
        interval is the percentile bootstrap over checkpoints, without draws that have no tau; None below 3 of them.
    """
    from scipy.stats import kendalltau  # as above

    found: Any = kendalltau(metric, success) if len(metric) > 1 else None
    if found is None or np.isnan(found.statistic):
        return {"checkpoints": len(metric), "tau": None, "p": None, "ci95": None}
    interval = None
    if len(metric) >= 3:
        pairs_N2 = np.stack([np.asarray(metric, float), np.asarray(success, float)], axis=1)
        draws = np.random.default_rng(seed).integers(len(metric), size=(1000, len(metric)))
        results: list[Any] = [kendalltau(*pairs_N2[draw].T) for draw in draws]
        drawn = [float(one.statistic) for one in results]
        interval = [float(bound) for bound in np.nanpercentile(drawn, [2.5, 97.5])]
    return {"checkpoints": len(metric), "tau": float(found.statistic), "p": float(found.pvalue), "ci95": interval}
