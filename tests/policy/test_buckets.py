"""Turns are cut into buckets without losing one, and with few empty rows."""

from __future__ import annotations

import pytest

from agent_jax.policy.buckets import BUCKETS, filled, split


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 6, 7, 11, 31, 33, 100])
def test_parts_hold_every_member_once_in_buckets_of_which_at_most_a_quarter_is_empty(number: int):
    parts = list(split(range(number)))
    assert [member for part, _ in parts for member in part] == list(range(number))
    for part, bucket in parts:
        assert bucket in BUCKETS
        assert 3 * bucket <= 4 * len(part) <= 4 * bucket


def test_values_stand_at_the_front_of_their_rows():
    assert filled([[1, 2], [3]], (3, 3), -1).tolist() == [[1, 2, -1], [3, -1, -1], [-1, -1, -1]]
    assert filled([7, 8], (3,), 0).tolist() == [7, 8, 0]
