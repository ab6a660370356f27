from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent_jax.config import ClosedLoopConfig
from agent_jax.data.store.store import open_store
from agent_jax.data.store.writer import begin_store, finish_store, shard_path
from agent_jax.envs import load
from agent_jax.envs.workers.demonstration_worker import (
    SEEDS,
    Progress,
    Shard,
    demonstrate,
    demonstration_features,
    episode_seed,
    write_shard,
)

pytest.importorskip("minigrid")

babyai = load("babyai")


def replay(record: dict, level: str) -> bool:
    """Check that the record's actions reproduce its images; returns the success."""
    environment = babyai.make(level)
    observation, info = environment.reset(seed=int(record["episode_id"].split("/")[1]))
    for step in record["steps"]:
        np.testing.assert_array_equal(step["observation"]["rgb"], observation["rgb"])
        observation, *_, info = environment.step({"action": step["action"]})
    return info["success"]


def test_a_noisy_episode_replays_to_success_and_only_the_experts_actions_have_weight() -> None:
    environment = babyai.make("PutNextLocal")
    weights, changed = [], 0
    for seed in range(20):
        record = demonstrate(babyai, environment, seed, 0.3)
        assert record is not None
        assert replay(record, "PutNextLocal")
        environment.reset(seed=seed)
        expert, taken = babyai.Expert(environment), None
        for step in record["steps"]:
            executed, advised = {"action": step["action"]}, expert.act(taken)
            assert step["action_weight"] == float(executed == advised)
            taken = None if executed == advised else executed
            if taken:
                changed += 1
                assert taken in babyai.NOISE
            environment.step(executed)
            weights.append(step["action_weight"])
    # A random one of three moves differs from the expert's in 2/3 of the cases.
    assert 0.16 < changed / len(weights) < 0.27


def test_without_noise_every_step_has_weight_1_and_the_ends_are_marked() -> None:
    record = demonstrate(babyai, babyai.make("GoToLocal"), 3, 0.0)
    assert record is not None
    steps = record["steps"]
    assert {step["action_weight"] for step in steps} == {1.0}
    assert [step["is_first"] for step in steps] == [True] + [False] * (len(steps) - 1)
    assert [step["is_last"] for step in steps] == [False] * (len(steps) - 1) + [True]
    assert [step["is_terminal"] for step in steps] == [step["is_last"] for step in steps]
    assert [step["reward"] > 0 for step in steps] == [step["is_last"] for step in steps]
    assert record["instruction"].startswith("go to the ")
    assert (record["episode_id"], record["recording_id"], record["start"]) == ("GoToLocal/3", "GoToLocal/3", 0)


def test_an_episode_that_the_expert_does_not_solve_is_not_recorded() -> None:
    assert demonstrate(babyai, babyai.make("KeyInBox"), 0, 0.0) is None  # the bot gives up
    noisy = [demonstrate(babyai, babyai.make("GoToLocal"), seed, 0.99) for seed in range(10)]
    assert None in noisy  # out of time
    for record in noisy:
        assert record is None or replay(record, "GoToLocal")


def test_seeds_of_training_validation_and_closed_loop_are_disjoint() -> None:
    closed_loop = ClosedLoopConfig().seed
    for seed in (0, 1, 77, 10**9):
        for index in (0, 1, SEEDS - 1, SEEDS // 3):
            assert 0 <= episode_seed("train", seed, index) < SEEDS
            assert SEEDS <= episode_seed("test", seed, index) < 2 * SEEDS <= closed_loop
    assert len({episode_seed("train", 5, index) for index in range(1000)}) == 1000


def shard(path: Path, level: str, episodes: int) -> Shard:
    return Shard(str(path), "babyai", level, 56, 0.1, "train", 0, 4, episodes)


def test_a_shard_is_written_and_read_back_exactly(tmp_path: Path) -> None:
    build = begin_store(tmp_path / "made", {})
    reports: list[Progress] = []
    write_shard(shard(shard_path(build, "babyai", "train", 0, 1), "GoToLocal", 5), reports.append)
    store = finish_store(tmp_path / "made", "babyai", demonstration_features(babyai, 56))
    assert sum(report.episodes for report in reports) == 5
    split = open_store(store.directory).split("train")
    assert len(split) == 5
    assert sum(split[i].steps for i in range(5)) == sum(report.steps for report in reports)
    record = demonstrate(babyai, babyai.make("GoToLocal"), episode_seed("train", 0, 8), 0.1)
    assert record is not None
    assert split[0].value("episode_id") == record["episode_id"].encode()
    np.testing.assert_array_equal(
        split[0].values("steps/action", 0, split[0].steps), [step["action"] for step in record["steps"]]
    )


def test_a_level_that_the_expert_cannot_solve_is_an_error_and_writes_no_shard(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'KeyInBox' of babyai: .* 0 of 4 episodes"):
        write_shard(shard(tmp_path / "shard", "KeyInBox", 2), lambda progress: None)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_does_not_load_jax(root: Path) -> None:
    code = ("import sys, agent_jax.envs.workers.demonstration_worker as w; w.load('babyai'); "
            "print({'jax', 'flax'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"
