from __future__ import annotations

import numpy as np
import pytest

from agent_jax.batch import RowSize
from agent_jax.data.pipeline.packing import fitted_size, plan_rows

SIZE = RowSize(frames=4, image_size=8, slots=100, targets=40)


def usages(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    frames = rng.integers(1, 5, count)
    text = rng.integers(2, 12, count)
    return np.stack([frames, text + frames * 20, text + frames * 3], axis=1)


@pytest.mark.parametrize("open_rows", [1, 3, 64])
def test_every_window_is_in_exactly_one_row_and_fits(open_rows):
    usage = usages(500)
    plan = plan_rows(usage, SIZE, 0, open_rows)
    assert sorted(plan.windows.tolist()) == list(range(500))
    for number in range(len(plan)):
        assert len(plan.row(number)) > 0
        assert (usage[plan.row(number)].sum(axis=0) <= (4, 100, 40)).all()


def test_windows_that_leave_room_share_rows():
    usage = usages(500)
    plan = plan_rows(usage, SIZE, 0)
    fill = plan.fill(usage, SIZE)
    assert len(plan) < 500 * 0.75
    assert fill["frames"] > 0.9  # with one window a row: 0.63
    assert fill["windows_per_row"] == 500 / len(plan)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_of_images_slots_and_targets_is_a_limit(place):
    room = (4, 100, 40)[place]
    usage = np.ones((40, 3), np.int64)
    usage[:, place] = np.where(np.arange(40) % 2, room // 4, room * 3 // 4)
    usage[:, 0] = usage[:, 0] if place == 0 else 0
    plan = plan_rows(usage, SIZE, 0)
    used = [usage[plan.row(number), place].sum() for number in range(len(plan))]
    assert max(used) == room


def test_the_plan_depends_on_the_seed_alone():
    usage = usages(200)
    one, two, other = plan_rows(usage, SIZE, 5), plan_rows(usage, SIZE, 5), plan_rows(usage, SIZE, 6)
    np.testing.assert_array_equal(one.windows, two.windows)
    np.testing.assert_array_equal(one.offsets, two.offsets)
    assert one.windows.tolist() != other.windows.tolist()


def test_rows_of_all_sizes_are_shuffled():
    usage = np.asarray([[4, 90, 20]] * 500 + [[1, 20, 5]] * 500)
    plan = plan_rows(usage, SIZE, 0)
    full = np.asarray([plan.row(number)[0] < 500 for number in range(len(plan))])
    assert 0.7 < full[: len(full) // 2].mean() < 0.9  # 500 of 625 rows, in both halves


def test_full_windows_get_a_row_each():
    plan = plan_rows(np.asarray([[4, 80, 30]] * 7), SIZE, 0)
    assert plan.offsets.tolist() == list(range(8))


def test_a_window_larger_than_a_row_is_refused():
    usage = usages(5)
    usage[3] = (4, 101, 10)
    with pytest.raises(ValueError, match=r"window 3 takes \[4, 101, 10\] .* \[4, 100, 40\]"):
        plan_rows(usage, SIZE, 0)


def test_a_hundred_thousand_windows_are_planned_in_seconds():
    rng = np.random.default_rng(0)
    frames = rng.integers(1, 5, 100_000)
    plan = plan_rows(np.stack([frames, frames * 20, frames * 3], axis=1), SIZE, 0)
    assert len(plan.windows) == 100_000  # quadratic time would run into faulthandler_timeout


def test_exclusive_windows_get_a_row_of_their_own():
    usage = np.ones((60, 3), np.int64)
    exclusive = np.arange(60) % 3 == 0
    plan = plan_rows(usage, SIZE, 0, exclusive_N=exclusive)
    rows = [plan.row(number).tolist() for number in range(len(plan))]
    assert all(len(row) == 1 for row in rows if exclusive[row[0]])
    assert sum(len(row) for row in rows) == 60
    assert len(rows) == 20 + 40 // 4


def test_a_fitted_row_holds_every_window_and_is_fuller_than_the_longest_one():
    usage = usages(500)
    size = fitted_size(usage, usage.max(axis=0), RowSize(frames=4, image_size=8, slots=200, targets=120), 20)
    assert (usage.max(axis=0) <= (size.frames, size.slots, size.targets)).all()
    assert size.slots % 8 == 0
    assert size.frames == 4
    fill = plan_rows(usage, size, 0).fill(usage, size)
    assert fill["slots"] > 0.9
    assert fill["frames"] > 0.9
    assert fill["targets"] > 0.6
    assert fitted_size(usage, usage.max(axis=0), size, 20) == size


def test_a_fitted_row_has_room_for_the_largest_window_of_later_epochs():
    usage = usages(100)
    size = fitted_size(usage, np.asarray([4, 150, 110]), RowSize(4, 8, slots=200, targets=120), 20)
    assert size.slots >= 150
    assert size.targets >= 110
