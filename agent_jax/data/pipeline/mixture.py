"""How often each window of each domain is seen in an epoch.

    weight 1, 1:    every window of both, once                       (plain concatenation, as in the paper)
    weight 2, 0.5:  the first domain's windows twice, half of the second's; the other half in the next epoch

A domain is an endless run through its windows, turn after turn; an epoch takes the next weight * count of them. So no
window is seen a second time before all were seen once, and over many epochs the shares are exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The samples of an epoch, in no particular order."""

    domain_N: np.ndarray  # number of the domain
    window_N: np.ndarray  # number of the window within it
    turn_N: np.ndarray  # how often it was seen before


def epoch_samples(counts: Sequence[int], weights: Sequence[float], epoch: int, seed: int) -> Epoch:
    """The samples of an epoch.

    Args:
        counts: windows of each domain.
        weights: of each domain; 1: each of its windows once an epoch.
        epoch: from 0.
        seed: of which windows a fraction of a turn takes.
    """
    domains, windows, turns = [], [], []
    for domain, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        # The same expression ends one epoch and begins the next: nothing is skipped or doubled by rounding.
        first, last = (math.floor(e * weight * count) for e in (epoch, epoch + 1))
        while first < last:
            turn, begin = divmod(first, count)
            end = min(count, begin + last - first)
            chosen = np.random.default_rng((seed, domain, turn)).permutation(count)[begin:end]
            domains.append(np.full(len(chosen), domain))
            windows.append(chosen)
            turns.append(np.full(len(chosen), turn))
            first += end - begin
    empty = [np.zeros(0, np.int64)]
    return Epoch(*(np.concatenate(parts or empty) for parts in (domains, windows, turns)))
