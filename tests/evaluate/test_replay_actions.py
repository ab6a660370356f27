from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_stores import babyai_store
from recorded_babyai import recorded_store, tiny_agent

from agent_jax.envs.workers.simulators import Simulators
from agent_jax.evaluate.replay_actions import (
    ReplayedTask,
    collected_from,
    format_replayed,
    quantised,
    recorded_episodes,
    replay_actions,
)

pytest.importorskip("minigrid")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "replay_actions"


@pytest.fixture(scope="module")
def domain(base: Path):
    return tiny_agent(base / "agent").domains["babyai"]


def test_recorded_actions_reach_the_recorded_success_raw_and_decoded(base: Path, domain) -> None:
    store = recorded_store(base / "store")
    assert collected_from(store) == "babyai"
    episodes = recorded_episodes(store, domain, "test")
    assert [episode.task for episode in episodes] == ["GoToObj"] * 4
    with Simulators("babyai", 14) as simulators:
        (task,) = replay_actions(simulators, episodes, domain)
    assert (task.task, task.episodes, task.different, task.lost) == ("GoToObj", 4, (), ())
    assert task.raw["success"] == task.decoded["success"] == 1.0


def test_a_seed_other_than_the_recorded_one_is_a_difference(base: Path, domain) -> None:
    episodes = recorded_episodes(recorded_store(base / "shifted", shift=1000), domain, "test")
    with Simulators("babyai", 14) as simulators:
        (task,) = replay_actions(simulators, episodes, domain)
    assert task.different
    assert set(task.different) <= {episode.seed for episode in episodes}


def test_actions_are_quantised_to_the_values_of_tokens() -> None:
    from data_stores import language_table_domain

    actions = {"action": np.float32([[0.0101, -0.02], [0.5, 0.0]])}
    decoded = quantised(actions, language_table_domain())["action"]
    assert decoded.shape == (2, 2)
    assert (decoded != actions["action"]).any()
    np.testing.assert_allclose(decoded[0], actions["action"][0], atol=0.03 / 10)
    assert decoded[1, 0] < 0.04  # clipped to the bounds: the last bin


def test_a_limited_number_of_episodes_is_spread_over_the_split(base: Path, domain) -> None:
    store = recorded_store(base / "store")
    every, some = (recorded_episodes(store, domain, "train", most) for most in (0, 2))
    assert [episode.seed for episode in some] == [every[0].seed, every[-1].seed]


def test_a_data_set_without_seeds_is_an_error(base: Path, domain, tmp_path: Path) -> None:
    foreign = recorded_store(base / "foreign", collected=False)
    assert collected_from(foreign) == ""
    with pytest.raises(ValueError, match="found no simulator, task and seed"):
        recorded_episodes(foreign, domain, "test")
    store = babyai_store(tmp_path / "tiles")  # its ids are 1-0, 1-1
    object.__setattr__(store, "metadata", {**store.metadata, "demonstrations": {"environment": "babyai"}})
    with pytest.raises(ValueError, match=r"found episode_id '1-0', expected TASK/SEED"):
        recorded_episodes(store, domain, "test")


def test_the_table_is_aligned() -> None:
    figures = {"success": 0.75, "episodes": 4, "ci95": [0.301, 0.954]}
    task = ReplayedTask("GoToObj", 4, {**figures, "success": 1.0}, figures, (7,), ())
    assert format_replayed([task]).splitlines() == [
        "task     episodes     raw  encode-decode    95% interval  different",
        "-------------------------------------------------------------------",
        "GoToObj         4  100.0%          75.0%  30.1% to 95.4%          1",
    ]
