"""How often each window of each domain is seen in an epoch.

    weight 1, 1:    every window of both, once                       (plain concatenation, as in the paper)
    weight 2, 0.5:  the first domain's windows twice, half of the second's; the other half in the next epoch

A domain's epoch is one pass over its windows, in an order of its own. An epoch of the run takes the next weight * count
windows of each domain, so no window is seen a second time before all were seen once, and over many epochs the shares
are exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The samples of an epoch of the run, in no particular order."""

    domain_N: np.ndarray  # index of the domain
    window_N: np.ndarray  # number of the window within it
    domain_epoch_N: np.ndarray  # the domain's own epoch: how often the window was seen before


def epoch_samples(counts: Sequence[int], weights: Sequence[float], epoch: int, seed: int) -> Epoch:
    """The samples of an epoch.

    Args:
        counts: windows of each domain.
        weights: of each domain; 1: each of its windows once an epoch.
        epoch: from 0.
        seed: of the order of each domain's windows.
    """
    domains, windows, domain_epochs = [], [], []
    for domain, (count, weight) in enumerate(zip(counts, weights, strict=True)):
        # The same expression ends one epoch and begins the next: nothing is skipped or doubled by rounding.
        first, last = (math.floor(e * weight * count) for e in (epoch, epoch + 1))
        while first < last:
            domain_epoch, begin = divmod(first, count)
            end = min(count, begin + last - first)
            chosen = np.random.default_rng((seed, domain, domain_epoch)).permutation(count)[begin:end]
            domains.append(np.full(len(chosen), domain))
            windows.append(chosen)
            domain_epochs.append(np.full(len(chosen), domain_epoch))
            first += end - begin
    empty = [np.zeros(0, np.int64)]
    return Epoch(*(np.concatenate(parts or empty) for parts in (domains, windows, domain_epochs)))
