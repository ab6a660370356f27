from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from agent_jax.config import ClosedLoopConfig
from agent_jax.envs import Action, load
from agent_jax.evaluate.closed_loop import (
    ExpertPolicy,
    RandomPolicy,
    closed_loop,
    evaluate_level,
    format_table,
)

pytest.importorskip("minigrid")

babyai = load("babyai")
SEED = ClosedLoopConfig().seed


class Half(ExpertPolicy):
    """The expert in even episodes, idle in odd ones; keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__(babyai)
        self.calls: list[tuple[np.ndarray, list[str], list[int]]] = []

    def act(self, images: np.ndarray, instructions: Sequence[str], env_ids: Sequence[int]) -> list[Action]:
        self.calls.append((images.copy(), list(instructions), list(env_ids)))
        expert = super().act(images, instructions, env_ids)
        return [{"action": 6} if i % 2 else action for i, action in zip(env_ids, expert, strict=True)]


@pytest.fixture(scope="module")
def half() -> tuple[Half, object]:
    policy = Half()
    return policy, evaluate_level(policy, babyai, "GoToLocal", 8, SEED, 56, name="half", record=2)


def test_success_and_steps_are_counted_for_the_episode_they_belong_to(half) -> None:
    _, result = half
    np.testing.assert_array_equal(result.success, [True, False] * 4)
    assert set(result.steps[1::2]) == {64}
    for i in range(0, 8, 2):
        environment = babyai.make("GoToLocal")
        environment.reset(seed=SEED + i)
        expert, steps, over = babyai.Expert(environment), 0, False
        while not over:
            _, _, terminated, truncated, _ = environment.step(expert.act())
            steps, over = steps + 1, terminated or truncated
        assert result.steps[i] == steps


def test_episodes_that_are_over_leave_the_batch(half) -> None:
    policy, result = half
    for step, (images, instructions, env_ids) in enumerate(policy.calls):
        assert env_ids == [i for i in range(8) if result.steps[i] > step]
        assert len(images) == len(instructions) == len(env_ids)
    assert policy.calls[-1][2] == [1, 3, 5, 7]


def test_the_policy_sees_the_present_picture_and_instruction_of_each_episode(half) -> None:
    policy, _ = half
    environments = [babyai.make("GoToLocal") for _ in range(8)]
    pictures = [environment.reset(seed=SEED + i)[0]["rgb"] for i, environment in enumerate(environments)]
    experts = [babyai.Expert(environment) for environment in environments]
    for images, instructions, env_ids in policy.calls[:5]:
        for image, instruction, i in zip(images, instructions, env_ids, strict=True):
            np.testing.assert_array_equal(image, pictures[i])
            assert instruction == environments[i].instruction
            pictures[i] = environments[i].step({"action": 6} if i % 2 else experts[i].act())[0]["rgb"]


def test_recordings_hold_every_picture_and_action_of_the_first_episodes(half) -> None:
    policy, result = half
    assert [(recording.seed, recording.success) for recording in result.recordings] == [(SEED, True), (SEED + 1, False)]
    for i, recording in enumerate(result.recordings):
        assert recording.frames.shape == (result.steps[i] + 1, 56, 56, 3)
        assert len(recording.actions) == result.steps[i]
        np.testing.assert_array_equal(recording.frames[0], policy.calls[0][0][i])
        assert recording.instruction == policy.calls[0][1][i]
    assert set(result.recordings[1].actions) == {"done"}


def test_an_episode_does_not_depend_on_those_beside_it() -> None:
    few, many = (
        evaluate_level(RandomPolicy(babyai.RANDOM["random_moves"], 0), babyai, "GoToObj", n, SEED, 56) for n in (3, 9)
    )
    np.testing.assert_array_equal(few.steps, many.steps[:3])
    np.testing.assert_array_equal(few.success, many.success[:3])


def test_random_policies_draw_uniformly_from_their_actions() -> None:
    policy = RandomPolicy(babyai.RANDOM["random_moves"], 1)
    policy.reset(range(3000))
    drawn = [action["action"] for action in policy.act(np.zeros((3000, 7, 7, 3), np.uint8), [""] * 3000, range(3000))]
    counts = np.bincount(drawn, minlength=7)
    assert np.all(np.abs(counts[:3] - 1000) < 100)
    assert not counts[3:].any()


def test_the_report_has_each_policy_and_baseline_of_each_level_and_is_printed() -> None:
    said: list[str] = []
    config = ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 4, "GoToLocal": 3})
    result = closed_loop(config, {"greedy": Half()}, record=1, say=said.append)
    assert list(result.report) == ["GoToObj", "GoToLocal"]
    for level, episodes in config.episodes.items():
        assert set(result.report[level]) == {"greedy", "random", "random_moves", "bot"}
        bot = result.report[level]["bot"]
        assert (bot["success"], bot["episodes"]) == (1.0, episodes)
        assert 0 < bot["ci95"][0] < bot["ci95"][1] == pytest.approx(1)
    assert result.report["GoToObj"]["greedy"]["success"] == 0.5
    assert [(recording.level, recording.policy) for recording in result.recordings] == [
        ("GoToObj", "greedy"),
        ("GoToLocal", "greedy"),
    ]
    assert len(said) == 2 * 4 + 1
    assert said[-1] == format_table(result.report)


def test_nothing_is_recorded_without_the_configs_video() -> None:
    config = ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 1}, video=False)
    assert closed_loop(config, {"greedy": Half()}, say=lambda line: None).recordings == ()


def test_the_table_is_aligned() -> None:
    figures = {"success": 0.745, "episodes": 200, "ci95": [0.68, 0.8], "mean_steps": 21.04}
    table = format_table({"GoToLocal": {"greedy": figures, "bot": {**figures, "success": 1.0, "ci95": [0.98, 1.0]}}})
    assert table.splitlines() == [
        "level      policy  success     95% interval  episodes  steps",
        "------------------------------------------------------------",
        "GoToLocal  greedy    74.5%   68.0% to 80.0%       200   21.0",
        "           bot      100.0%  98.0% to 100.0%       200   21.0",
    ]


def test_unfit_configs_and_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="'GoToObj': found 0 episodes"):
        closed_loop(ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 0}), {})
    with pytest.raises(ValueError, match="the names bot are those of baselines"):
        closed_loop(ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 1}), {"bot": Half()})

    class Mute(RandomPolicy):
        def act(self, images: np.ndarray, instructions: Sequence[str], env_ids: Sequence[int]) -> list[Action]:
            return super().act(images, instructions, env_ids)[1:]

    with pytest.raises(ValueError, match="policy 'mute': found 1 actions for 2 episodes"):
        evaluate_level(Mute(babyai.NOISE, 0), babyai, "GoToObj", 2, SEED, 56, name="mute")
