"""Statistics of a split: exact, from one pass over all records, and recomputed for changed data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_stores import arm_store, babyai_store

from agent_jax.data.store import statistics
from agent_jax.data.store.schema import Field
from agent_jax.data.store.split import Split
from agent_jax.data.store.statistics import SplitNumbers, Statistics, _Values
from agent_jax.data.store.store import Store, open_store

RNG = np.random.default_rng(0)
EPISODES = [RNG.normal((1e4, 0.1), (1.0, 0.02), (length, 2)).astype(np.float32) for length in (7, 1, 40, 12)]
ALL = np.concatenate(EPISODES).astype(np.float64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return arm_store(tmp_path / "set", EPISODES)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often all records of a split were read."""
    found = []
    iterate = Split.__iter__
    monkeypatch.setattr(Split, "__iter__", lambda self: found.append(self.name) or iterate(self))
    return lambda: len(found)


def action_statistics(store: Store, split: str = "train") -> Statistics:
    return SplitNumbers(store, split, ["action"]).statistics["action"]


def test_statistics_are_those_of_all_values_in_float64(store):
    found = action_statistics(store)
    assert found.count == 60
    np.testing.assert_array_equal(found.min, ALL.min(axis=0))
    np.testing.assert_array_equal(found.max, ALL.max(axis=0))
    np.testing.assert_allclose(found.mean, ALL.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.std, ALL.std(axis=0), rtol=1e-11)
    np.testing.assert_allclose(found.q01, np.quantile(ALL, 0.01, axis=0), rtol=1e-7)
    np.testing.assert_allclose(found.q99, np.quantile(ALL, 0.99, axis=0), rtol=1e-7)
    np.testing.assert_array_equal(found.sample, ALL)  # fewer steps than SAMPLED_STEPS
    assert found.exact
    assert found.distinct[0] == tuple(np.unique(ALL[:, 0]))


def test_several_keys_are_read_in_one_pass_and_then_from_the_cache(tmp_path, passes):
    store = babyai_store(tmp_path / "tiles")
    first = SplitNumbers(store, "train", ["action", "steps/reward"]).statistics
    assert passes() == 1
    assert first["action"].min.shape == ()
    assert first["action"].distinct == (tuple(float(action) for action in range(7)),)
    assert first["steps/reward"].distinct == ((0.0, 1.0),)
    again = SplitNumbers(open_store(store.directory), "train", ["action", "steps/reward"]).statistics
    assert passes() == 1
    for key, of_key in again.items():
        for name, value in vars(of_key).items():
            np.testing.assert_equal(value, getattr(first[key], name))


def test_changed_data_are_read_again(store, tmp_path, passes):
    before = action_statistics(store)
    assert action_statistics(store, "test").count == len(EPISODES[0])
    assert passes() == 2
    shard = store.files("train")[0]
    other = arm_store(tmp_path / "other", [2 * episode for episode in EPISODES]).files("train")[0]
    assert shard.stat().st_size == other.stat().st_size  # they differ in modification time alone
    shard.write_bytes(other.read_bytes())
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
    after = action_statistics(open_store(store.directory))
    np.testing.assert_allclose(after.mean, 2 * before.mean)
    assert after.data_hash != before.data_hash


def test_the_hash_depends_on_the_numbers_and_not_on_their_directory(store, tmp_path):
    moved = arm_store(tmp_path / "copy", EPISODES)
    one, two = (action_statistics(place).data_hash for place in (store, moved))
    assert one == two


def test_a_damaged_cache_is_rebuilt(store, cache, passes):
    action_statistics(store)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert action_statistics(store).count == 60
    assert passes() == 2


def test_shares_outside_and_at_the_bounds_are_counted_by_component(tmp_path, passes):
    actions = np.asarray([[-1.0, 0.1], [1.0, 0.1], [1.0 + 1e-7, 0.3], [0.2, 0.300001], [1.5, -0.1]], np.float32)
    store = arm_store(tmp_path / "set", [actions])
    bounds = {"action": (np.array([-1.0, 0.1]), np.array([1.0, 0.3]))}
    numbers = SplitNumbers(store, "train", ["action"])
    found = numbers.shares(bounds)["action"]
    np.testing.assert_allclose(found.outside, [1 / 5, 2 / 5])  # float32's 0.1 is above 0.1 by rounding alone
    np.testing.assert_allclose(found.at_bound, [3 / 5, 3 / 5])
    assert numbers.statistics["action"].count == 5
    assert passes() == 1
    np.testing.assert_equal(vars(SplitNumbers(store, "train", ["action"]).shares(bounds)["action"]), vars(found))
    assert passes() == 1
    wider = {"action": (np.array([-1.0, -1.0]), np.array([2.0, 1.0]))}
    np.testing.assert_array_equal(SplitNumbers(store, "train", ["action"]).shares(wider)["action"].outside, [0, 0])


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf")])
def test_a_number_that_is_not_finite_is_named_by_record_step_and_component(tmp_path, value, shown):
    broken = [episode.copy() for episode in EPISODES]
    broken[2][5, 1] = value
    store = arm_store(tmp_path / "set", broken)
    with pytest.raises(ValueError, match=rf"split 'train', record 2, step 5: steps/action\[1\] is {shown}, expected"):
        action_statistics(store)
    np.testing.assert_array_equal(action_statistics(store, "test").min, EPISODES[0].min(axis=0))


def test_a_field_without_numbers_is_refused(store):
    with pytest.raises(ValueError, match=r"field 'steps/observation/rgb' has no statistics"):
        SplitNumbers(store, "train", ["steps/observation/rgb"])
    with pytest.raises(ValueError, match=r"no field 'steps/torque'"):
        SplitNumbers(store, "train", ["torque"])


def test_dropped_steps_free_their_memory():
    values = _Values(Field("steps/action", "array", True, (2,), np.dtype(np.float32)))
    for record in range(2):
        values.add(np.zeros((40, 2), np.float32), f"record {record}")
        values.flush()
        values.thin(most=20 + 20 * record)
    arrays = [array if array.base is None else array.base for array in values._sampled]
    assert [len(array) for array in arrays] == [20, 20]


@pytest.mark.parametrize("block_steps", [1, 64, 4096])
def test_beyond_the_memory_limit_samples_are_thinned_and_sums_stay_exact(tmp_path, monkeypatch, block_steps):
    monkeypatch.setattr(statistics, "MAX_VALUES", 2 * 100)
    monkeypatch.setattr(statistics, "_BLOCK_STEPS", block_steps)
    rng = np.random.default_rng(1)
    actions = [np.stack([np.arange(first, first + 30), rng.normal(size=30)], 1) for first in range(0, 600, 30)]
    found = action_statistics(arm_store(tmp_path / "set", actions))
    assert not found.exact
    assert (found.count, found.min[0], found.max[0]) == (600, 0, 599)
    np.testing.assert_allclose(found.mean, np.concatenate(actions).astype(np.float32).mean(axis=0, dtype=float))
    steps = found.sample[:, 0]
    assert len(steps) <= 100
    np.testing.assert_array_equal(np.diff(steps), 8)  # evenly spaced, from the first step to the last
    np.testing.assert_allclose(found.quantiles[0.5][0], 300, atol=8)
