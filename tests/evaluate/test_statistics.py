from __future__ import annotations

import math

import numpy as np
import pytest

from agent_jax.evaluate.statistics import chain_summary, success_summary


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """The roots p of (rate - p)^2 = z^2 p (1 - p) / n (Wilson 1927), by the quadratic formula."""
    z, rate = 1.959963984540054, successes / episodes
    a, b, c = 1 + z**2 / episodes, -(2 * rate + z**2 / episodes), rate**2
    root = math.sqrt(max(b * b - 4 * a * c, 0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@pytest.mark.parametrize(("successes", "episodes"), [(8, 10), (0, 200), (200, 200), (1, 1), (149, 200)])
def test_the_interval_is_wilsons(successes: int, episodes: int) -> None:
    summary = success_summary(np.arange(episodes) < successes)
    assert summary["success"] == successes / episodes
    assert summary["episodes"] == episodes
    assert summary["ci95"] == pytest.approx(wilson(successes, episodes), abs=1e-12)


def test_the_interval_of_8_in_10_is_the_published_one() -> None:
    # Brown, Cai and DasGupta (2001) and any table: 0.490 to 0.943.
    assert success_summary(np.arange(10) < 8)["ci95"] == pytest.approx([0.4902, 0.9433], abs=5e-5)


def test_no_episodes_and_values_other_than_booleans_are_errors() -> None:
    for wrong in (np.zeros(0, bool), np.ones(3), np.zeros((2, 2), bool)):
        with pytest.raises(ValueError, match="successes: found"):
            success_summary(wrong)


def test_chains_are_counted_by_completed_instructions_in_a_row() -> None:
    summary = chain_summary(np.array([5, 3, 0, 1]), 5)
    assert [share["success"] for share in summary["in_a_row"]] == [0.75, 0.5, 0.5, 0.25, 0.25]
    assert summary["in_a_row"][0] == success_summary(np.array([True, True, False, True]))
    assert summary["mean_length"] == 2.25


@pytest.mark.parametrize("completed", [[], [6], [-1]])
def test_impossible_numbers_of_completed_instructions_are_errors(completed: list[int]) -> None:
    with pytest.raises(ValueError, match="expected numbers from 0 to 5, one an episode"):
        chain_summary(np.array(completed, np.int64), 5)
