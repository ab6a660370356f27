from __future__ import annotations

import contextlib
import io
import sys

import numpy as np
import pytest

from agent_jax.envs import load

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("minigrid")

from minigrid.utils.baby_ai_bot import BabyAIBot  # noqa: E402
from minigrid.wrappers import RGBImgPartialObsWrapper  # noqa: E402

babyai = load("babyai")


def plain(level: str, tile_size: int = 8) -> RGBImgPartialObsWrapper:
    return RGBImgPartialObsWrapper(gymnasium.make(f"BabyAI-{level}-v0"), tile_size=tile_size)


def reset_silently(environment: RGBImgPartialObsWrapper, seed: int) -> dict:
    with contextlib.redirect_stdout(io.StringIO()):
        return environment.reset(seed=seed)[0]


# Carried objects, doors open and shut, locked ones, several rooms.
@pytest.mark.parametrize("level", ["GoToLocal", "PutNextLocal", "UnlockPickup", "GoToSeqS5R2"])
def test_images_and_expert_equal_minigrids_with_random_actions_in_between(level: str) -> None:
    ours, theirs = babyai.make(level, image_size=56), plain(level)
    for seed in range(4):
        random = np.random.default_rng(seed)
        observation, info = ours.reset(seed=seed)
        expected = reset_silently(theirs, seed)
        assert ours.instruction == expected["mission"]
        assert info == {"success": False}
        expert, bot, taken, over = babyai.Expert(ours), BabyAIBot(theirs), None, False
        while not over:
            np.testing.assert_array_equal(observation["rgb"], expected["image"])
            action = expert.act(taken)
            assert action == {"action": int(bot.replan(None if taken is None else taken["action"]))}
            taken = babyai.NOISE[int(random.integers(3))] if random.random() < 0.25 else None
            executed = taken or action
            observation, reward, *ends, info = ours.step(executed)
            expected, expected_reward, *expected_ends, _ = theirs.step(executed["action"])
            assert (reward, ends) == (expected_reward, expected_ends)
            over = any(ends)
        np.testing.assert_array_equal(observation["rgb"], expected["image"])
        assert info["success"]
        assert reward > 0
        assert not expert.failed


def test_images_equal_minigrids_for_any_action_and_at_another_size() -> None:
    ours, theirs = babyai.make("KeyInBox", image_size=28), plain("KeyInBox", tile_size=4)
    random = np.random.default_rng(0)
    observation, expected = ours.reset(seed=3)[0], reset_silently(theirs, 3)
    for _ in range(200):
        np.testing.assert_array_equal(observation["rgb"], expected["image"])
        action = int(random.integers(7))
        observation, expected = ours.step({"action": action})[0], theirs.step(action)[0]


def test_an_episode_is_determined_by_its_seed() -> None:
    one, other = babyai.make("GoToLocal"), babyai.make("GoToLocal")
    other.reset(seed=4)
    first, again = one.reset(seed=5)[0]["rgb"], other.reset(seed=5)[0]["rgb"]
    np.testing.assert_array_equal(first, again)
    assert one.instruction == other.instruction
    assert not np.array_equal(first, one.reset(seed=6)[0]["rgb"])
    assert first.shape == (56, 56, 3)
    assert first.dtype == np.uint8


def test_an_episode_without_success_is_truncated_at_the_limit() -> None:
    environment = babyai.make("GoToLocal")
    environment.reset(seed=1)
    for step in range(64):
        _, reward, terminated, truncated, info = environment.step({"action": 6})
        assert (reward, terminated, truncated) == (0, False, step == 63)
    assert not info["success"]


def test_minigrids_output_while_it_makes_a_level_is_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    reset = plain("PutNextLocal").reset
    seed = 0
    while "rejected" not in capfd.readouterr().out:
        seed += 1
        reset(seed=seed)
    babyai.make("PutNextLocal").reset(seed=seed)
    assert capfd.readouterr().out == ""


def test_an_expert_that_gives_up_has_failed_and_does_nothing() -> None:
    environment = babyai.make("KeyInBox")  # minigrid's bot cannot open boxes
    environment.reset(seed=0)
    expert = babyai.Expert(environment)
    action = expert.act()
    for _ in range(20):
        environment.step(action)
        action = expert.act()
    assert expert.failed
    assert babyai.action_name(action) == "done"


def test_actions_and_their_names_equal_those_of_the_action_spec() -> None:
    choice = babyai.ACTION_SPEC.parts[0]
    assert tuple(babyai.action_name({"action": i}) for i in range(7)) == choice.tokens
    assert {key: shape for key, (shape, _) in babyai.ACTION_SPEC.fields.items()} == {"action": ()}
    assert [action["action"] for action in babyai.RANDOM["random"]] == list(range(7))
    assert [babyai.action_name(action) for action in babyai.RANDOM["random_moves"]] == ["left", "right", "forward"]


def test_an_unknown_level_a_wrong_size_and_an_unknown_environment_are_errors() -> None:
    with pytest.raises(ValueError, match=r"level: found 'GoToLocl', .*: GoToLocal"):
        babyai.make("GoToLocl")
    with pytest.raises(ValueError, match=r"image_size=50 must be a multiple of 7: .*; try 49"):
        babyai.make("GoToLocal", image_size=50)
    with pytest.raises(ValueError, match=r"environment: found 'babyia'; did you mean 'babyai'\?"):
        load("babyia")


def test_levels_may_have_minigrids_full_names() -> None:
    for name in ("GoToLocal", "BabyAI-GoToLocal-v0", "GoToObjS6"):  # the last exists only as v1
        assert babyai.make(name).reset(seed=0)[0]["rgb"].shape == (56, 56, 3)


def test_a_missing_simulator_is_an_error_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minigrid", None)
    monkeypatch.delitem(sys.modules, "agent_jax.envs.babyai")
    with pytest.raises(ModuleNotFoundError, match=r'needs minigrid, .* pip install -e "\.\[babyai\]"'):
        load("babyai")
