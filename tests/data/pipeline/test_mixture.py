from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from agent_jax.data.pipeline.mixture import epoch_samples


def test_weight_one_is_every_window_once_an_epoch():
    for epoch in range(3):
        samples = epoch_samples([5, 3], [1.0, 1.0], epoch, seed=0)
        pairs = sorted(zip(samples.domain_N.tolist(), samples.window_N.tolist(), strict=True))
        assert pairs == [(0, i) for i in range(5)] + [(1, i) for i in range(3)]
        assert (samples.domain_epoch_N == epoch).all()


@pytest.mark.parametrize("weight", [0.5, 0.1, 1 / 3, 0.7, 2.0, 2.5])
def test_a_weight_is_kept_exactly_over_many_epochs(weight):
    seen: Counter[int] = Counter()
    for epoch in range(30):
        samples = epoch_samples([7], [weight], epoch, seed=0)
        seen.update(samples.window_N.tolist())
        assert abs(len(samples.window_N) - 7 * weight) < 1
        times = [seen[window] for window in range(7)]
        assert max(times) - min(times) <= 1  # no window a second time before all were seen once
    assert abs(sum(seen.values()) - 30 * 7 * weight) < 1


def test_a_window_is_never_seen_twice_in_an_epoch_of_its_domain():
    seen = set()
    for epoch in range(10):
        samples = epoch_samples([7], [2.5], epoch, seed=0)
        pairs = set(zip(samples.window_N.tolist(), samples.domain_epoch_N.tolist(), strict=True))
        assert len(pairs) == len(samples.window_N)
        assert not pairs & seen
        seen |= pairs


def test_a_fractional_weight_takes_windows_that_depend_on_the_seed():
    parts = {tuple(np.sort(epoch_samples([100], [0.5], 0, seed).window_N)) for seed in range(5)}
    assert len(parts) == 5
