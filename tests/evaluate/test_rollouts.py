"""Episodes of policies, baselines and recorded actions, on the real BabyAI."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from data_stores import babyai_domain
from served import tiny_policy, twin

from agent_jax.config import ClosedLoopConfig
from agent_jax.envs import Action, load
from agent_jax.envs.workers.simulator_pool import EpisodeStatus, SimulatorPool
from agent_jax.envs.workers.simulators import Command, Simulators
from agent_jax.evaluate.outcomes import TaskResult
from agent_jax.evaluate.rollouts import ObservationKeys, run_baseline, run_policy, run_whole

pytest.importorskip("minigrid")

babyai = load("babyai")
SEED = ClosedLoopConfig().seed
SEEDS = range(SEED, SEED + 8)
Call = tuple[list[np.ndarray], list[str], list[int]]


class Scripted:
    """Goes forward if the sum of its image is odd, else turns left; stores its inputs."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.begun: list[int] = []
        self.forgotten: list[int] = []

    def reset(self, env_ids: Sequence[int]) -> None:
        self.begun += env_ids

    def forget(self, env_ids: Sequence[int]) -> None:
        self.forgotten += env_ids

    def act(self, images: Sequence[Mapping[str, np.ndarray]], instructions: Sequence[str], env_ids: Sequence[int],
            states: Any = None) -> list[Action]:
        assert states is None
        self.calls.append(([image["rgb"].copy() for image in images], list(instructions), list(env_ids)))
        return [{"action": np.int64(choose(image["rgb"]))} for image in images]


def choose(image: np.ndarray) -> int:
    return 2 if int(image.sum()) % 2 else 0


@pytest.fixture(scope="module")
def here() -> Iterator[Simulators]:
    with Simulators("babyai") as simulators:
        yield simulators


@pytest.fixture(scope="module")
def seen(here: Simulators) -> tuple[Scripted, TaskResult]:
    policy = Scripted()
    return policy, run_policy(policy, here, "GoToLocal", SEEDS, name="scripted", record=2,
                              action_name=babyai.action_name, concurrent=3)


@functools.cache
def by_hand(seed: int) -> tuple[bool, list[np.ndarray], str]:
    environment = babyai.make("GoToLocal")
    observation, info = environment.reset(seed=seed)
    pictures, over = [observation["rgb"]], False
    while not over:
        observation, _, terminated, truncated, info = environment.step({"action": choose(pictures[-1])})
        pictures.append(observation["rgb"])
        over = terminated or truncated
    return info["success"], pictures, environment.instruction


def test_success_steps_and_images_equal_those_of_each_episode_run_alone(seen: tuple[Scripted, TaskResult]) -> None:
    policy, result = seen
    assert result.seeds == tuple(SEEDS)
    shown: dict[int, list[np.ndarray]] = {}
    for images, instructions, env_ids in policy.calls:
        assert len(images) == len(instructions) == len(env_ids) <= 3
        for image, instruction, i in zip(images, instructions, env_ids, strict=True):
            shown.setdefault(i, []).append(image)
            assert instruction == by_hand(SEED + i)[2]
    for i, seed in enumerate(SEEDS):
        success, pictures, _ = by_hand(seed)
        assert (result.success[i], result.steps[i]) == (success, len(pictures) - 1)
        np.testing.assert_array_equal(shown[i], pictures[:-1])


def test_an_episode_begins_when_another_one_ends_and_is_forgotten(seen: tuple[Scripted, TaskResult]) -> None:
    policy, result = seen
    assert policy.begun == list(range(8))
    assert sorted(policy.forgotten) == list(range(8))
    assert policy.calls[0][2] == [0, 1, 2]
    assert sum(len(ids) for _, _, ids in policy.calls) == result.steps.sum()
    alive = [len(ids) for _, _, ids in policy.calls]
    assert alive.index(2) >= len(alive) - max(result.steps)  # full until no episode is waiting


def test_the_end_of_each_episode_is_reported(here: Simulators) -> None:
    ended: list[int] = []
    run_policy(Scripted(), here, "GoToLocal", SEEDS[:4], concurrent=3, on_end=ended.append)
    assert sum(ended) == 4
    assert len(ended) > 1


def test_recordings_have_every_image_and_action_of_the_first_episodes(seen: tuple[Scripted, TaskResult]) -> None:
    _, result = seen
    assert [recording.seed for recording in result.recordings] == [SEED, SEED + 1]  # none succeeds
    for recording in result.recordings:
        success, pictures, instruction = by_hand(recording.seed)
        np.testing.assert_array_equal(recording.frames, pictures)
        assert (recording.success, recording.policy) == (success, "scripted")
        assert recording.instructions == (instruction,) * len(pictures)
        named = {0: "left", 2: "forward"}
        assert recording.actions == tuple(named[choose(picture)] for picture in pictures[:-1])


def test_outcomes_have_seed_success_steps_and_instruction(seen: tuple[Scripted, TaskResult]) -> None:
    _, result = seen
    for seed, outcome in zip(SEEDS, result.outcomes, strict=True):
        success, pictures, instruction = by_hand(seed)
        assert (outcome.seed, outcome.success, outcome.steps, outcome.instruction) == (
            seed, success, len(pictures) - 1, instruction)


def test_the_expert_solves_every_episode_and_random_actions_depend_only_on_their_episode(here: Simulators) -> None:
    expert = run_baseline(here, "GoToObj", SEEDS, "bot", 0)
    assert expert.success.all()
    few, many, other = (run_baseline(here, "GoToObj", range(SEED, SEED + n), "random_moves", seed)
                        for n, seed in ((3, 0), (6, 0), (6, 1)))
    np.testing.assert_array_equal(few.steps, many.steps[:3])
    assert (other.steps != many.steps).any()
    assert (few.steps >= expert.steps[:3]).all()


def test_the_terminal_action_ends_the_episode(here: Simulators) -> None:
    class Quitter(Scripted):
        def act(self, images: Any, instructions: Any, env_ids: Any, states: Any = None) -> list[Action]:
            return [{"terminal": np.array(True)} for _ in env_ids]

    result = run_policy(Quitter(), here, "GoToObj", SEEDS[:2], record=1, action_name=babyai.action_name)
    assert (result.steps == 1).all()
    assert not result.success.any()
    assert result.recordings[0].actions == ("terminal",)


class InThrees(Scripted):
    """Chooses an action by the image, then turns left and goes forward."""

    def act(self, images: Any, instructions: Any, env_ids: Any, states: Any = None) -> list[list[Action]]:
        return [[action, {"action": np.int64(0)}, {"action": np.int64(2)}]
                for action in super().act(images, instructions, env_ids, states)]

    def probability(self, env_id: int, number: int = 0) -> float:
        return (0.5, 0.25, 0.125)[number]


@functools.cache
def in_threes_by_hand(seed: int) -> tuple[bool, list[np.ndarray], list[int]]:
    environment = babyai.make("GoToLocal")
    observation, info = environment.reset(seed=seed)
    pictures, actions, over = [observation["rgb"]], [], False
    while not over:
        for action in (choose(pictures[-1]), 0, 2):
            observation, _, terminated, truncated, info = environment.step({"action": action})
            pictures.append(observation["rgb"])
            actions.append(action)
            if over := terminated or truncated:
                break
    return info["success"], pictures, actions


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_list_of_actions_is_executed_without_asking_again_until_the_episode_ends(processes: int) -> None:
    policy = InThrees()
    with Simulators("babyai", processes=processes) as simulators:
        result = run_policy(policy, simulators, "GoToLocal", SEEDS, record=3, trace=True,
                            action_name=babyai.action_name, concurrent=3)
    lengths, asked = [], 0
    for seed, outcome in zip(SEEDS, result.outcomes, strict=True):
        success, pictures, actions = in_threes_by_hand(seed)
        assert (outcome.success, outcome.steps) == (success, len(actions))
        assert [one["action"] for one in outcome.actions] == actions
        assert outcome.probabilities == tuple((0.5, 0.25, 0.125)[t % 3] for t in range(len(actions)))
        lengths.append(len(actions))
        asked += -(-len(actions) // 3)
    assert sum(len(ids) for _, _, ids in policy.calls) == asked
    assert any(length % 3 for length in lengths)  # some end amid a list
    for recording in result.recordings:
        _, pictures, actions = in_threes_by_hand(recording.seed)
        np.testing.assert_array_equal(recording.frames, pictures)
        assert recording.actions == tuple({0: "left", 2: "forward"}[action] for action in actions)
        assert len(set(recording.instructions)) == 1


def test_a_policy_of_several_actions_per_image_sees_every_second_image(here: Simulators) -> None:
    policy = tiny_policy(babyai_domain(max_text=40, actions_per_image=2))
    result = run_policy(policy, here, "GoToObj", SEEDS[:2], trace=True)
    for number, outcome in enumerate(result.outcomes):
        environment, own, actions, over = babyai.make("GoToObj"), twin(policy), [], False
        observation, _ = environment.reset(seed=SEEDS[number])
        while not over:
            for action in own.act([observation["rgb"]], [environment.instruction], [number])[0]:
                observation, _, terminated, truncated, _ = environment.step(action)
                actions.append({"action": int(action["action"])})
                if over := terminated or truncated:
                    break
        assert list(outcome.actions) == actions
        assert len(outcome.probabilities) == len(actions)


def test_a_terminal_action_ends_a_list_of_actions(here: Simulators) -> None:
    class Quitter(Scripted):
        def act(self, images: Any, instructions: Any, env_ids: Any, states: Any = None) -> list[list[Action]]:
            return [[{"action": np.int64(0)}, {"terminal": np.array(True)}, {"action": np.int64(0)}] for _ in env_ids]

    result = run_policy(Quitter(), here, "GoToObj", SEEDS[:2], record=1, action_name=babyai.action_name)
    assert (result.steps == 2).all()
    assert result.recordings[0].actions == ("left", "terminal")


def test_an_empty_list_of_actions_is_an_error(here: Simulators) -> None:
    class Mute(Scripted):
        def act(self, images: Any, instructions: Any, env_ids: Any, states: Any = None) -> list[list[Action]]:
            return [[] for _ in env_ids]

    with pytest.raises(ValueError, match="policy 'mute': found an empty list of actions, expected at least one"):
        run_policy(Mute(), here, "GoToObj", SEEDS[:1], name="mute")


def test_another_instruction_ends_a_list_of_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SimulatorPool("babyai")
    pool.begin(0, "GoToObj", SEED)
    environment = pool._environments[0][1]
    take = pool.step

    def step(slot: int, action: Action) -> EpisodeStatus:
        status = take(slot, action)
        return dataclasses.replace(status, instruction="another" if status.steps == 2 else environment.instruction)

    monkeypatch.setattr(pool, "step", step)
    status = pool.steps(0, [{"action": np.int64(0)}] * 4, "rgb")
    assert (status.steps, status.instruction, len(status.between)) == (2, "another", 1)
    pool.close()


def test_a_replayed_episode_ends_with_its_last_action(here: Simulators) -> None:
    commands = [Command("replay", {"task": "GoToObj", "seed": SEED, "actions": {"action": np.full(count, 0)}})
                for count in (1, 5)]
    result = run_whole(here, "GoToObj", [SEED, SEED], commands)
    assert result.steps.tolist() == [1, 5]
    assert not result.success.any()


def test_policies_with_too_few_actions_and_no_episodes_are_errors(here: Simulators) -> None:
    class Mute(Scripted):
        def act(self, images: Any, instructions: Any, env_ids: Any, states: Any = None) -> list[Action]:
            return super().act(images, instructions, env_ids)[1:]

    with pytest.raises(ValueError, match="policy 'mute': found 1 actions for 2 episodes"):
        run_policy(Mute(), here, "GoToObj", SEEDS[:2], name="mute")
    with pytest.raises(ValueError, match="'GoToObj': found 0 episodes"):
        run_policy(Scripted(), here, "GoToObj", [], keys=ObservationKeys())
    for concurrent in (0, -1):
        with pytest.raises(ValueError, match=f"concurrent={concurrent}: expected at least 1 episode"):
            run_policy(Scripted(), here, "GoToObj", SEEDS[:2], concurrent=concurrent)
