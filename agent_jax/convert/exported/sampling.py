"""Chooses an id by its logits."""

from __future__ import annotations

import numpy as np


def sampled(log_K: np.ndarray, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """An id by its log-probabilities: the best one, or a sample among the top p (Holtzman et al., 2019)."""
    if not temperature:
        return int(np.argmax(log_K))
    odds_K = np.exp((log_K - log_K.max()) / temperature)
    order_K = np.argsort(-odds_K, kind="stable")
    sums_K = np.cumsum(odds_K[order_K] / odds_K.sum())
    kept = order_K[: 1 + np.searchsorted(sums_K, top_p)]
    return int(random.choice(kept, p=odds_K[kept] / odds_K[kept].sum()))


def check_finite(logits: np.ndarray) -> None:
    """Raise ValueError for logits or probabilities that are not finite."""
    if not np.isfinite(logits).all():
        raise ValueError("the logits are NaN or infinite: the parameters are damaged, or their training diverged")
