from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
from dot_arms import DotEpisode, dot_data, dot_episode, dot_episodes
from small_runs import ROOT

from agent_jax.doctor.detectors import DETECTORS
from agent_jax.doctor.detectors.numbers import lead_of

GOOD = dot_episodes()


def black(episodes: list[DotEpisode]) -> list[str]:
    episodes[2].images["front"][7:] = 1
    return ["train/2"]


def one_colour(episodes: list[DotEpisode]) -> list[str]:
    episodes[4].images["wrist"][3] = 200
    return ["train/4"]


def frozen(episodes: list[DotEpisode]) -> list[str]:
    for number in (1, 5):
        episodes[number].images["wrist"][10:20] = episodes[number].images["wrist"][10]
    return ["train/1", "train/5"]


def repeated(episodes: list[DotEpisode]) -> list[str]:
    for number in (1, 5):
        episodes[number].images["front"][1::2] = episodes[number].images["front"][::2]
    return ["train/1", "train/5"]


def swapped(episodes: list[DotEpisode]) -> list[str]:
    for number in (0, 9):
        images = episodes[number].images
        images["front"], images["wrist"] = images["wrist"], images["front"]
    return ["train/0", "train/9"]


def late_actions(episodes: list[DotEpisode]) -> list[str]:
    for episode in episodes:
        episode.actions[:, :2] = np.roll(episode.actions[:, :2], 1, axis=0)
    return [f"{episode.split}/{episode.number}" for episode in episodes]


def early_actions(episodes: list[DotEpisode]) -> list[str]:
    for episode in episodes:
        episode.actions[:, :2] = np.roll(episode.actions[:, :2], -3, axis=0)
    return [f"{episode.split}/{episode.number}" for episode in episodes]


def constant(episodes: list[DotEpisode]) -> list[str]:
    for episode in episodes:
        episode.actions[:, 1] = 0.25
    return ["train/0"]


def clipped(episodes: list[DotEpisode]) -> list[str]:
    for episode in episodes:
        episode.actions[:, 1] = np.clip(episode.actions[:, 1], -0.1, 1)
    return [f"{episode.split}/{episode.number}" for episode in episodes]


def flipped_gripper(episodes: list[DotEpisode]) -> list[str]:
    for number in (4, 6, 10):
        episodes[number].actions[:, 2] *= -1
    return ["train/4", "train/6", "train/10"]


def jitter(episodes: list[DotEpisode]) -> list[str]:
    episodes[8].times_s += np.random.default_rng(0).uniform(0, 0.08, 40)
    return ["train/8"]


def gap(episodes: list[DotEpisode]) -> list[str]:
    episodes[8].times_s[20:] += 0.7
    return ["train/8"]


def backwards(episodes: list[DotEpisode]) -> list[str]:
    episodes[8].times_s[20:] -= 0.5
    return ["train/8"]


def wrong_rate(episodes: list[DotEpisode]) -> list[str]:
    for episode in episodes:
        episode.times_s *= 2
    return [f"{episode.split}/{episode.number}" for episode in episodes]


def contradictions(episodes: list[DotEpisode]) -> list[str]:
    for source, target in ((0, 2), (1, 5)):  # of the same instruction
        episodes[target] = copy.deepcopy(episodes[source])
        episodes[target].number = target
        episodes[target].actions *= -1
    return ["train/0", "train/1", "train/2", "train/5"]


def one_instruction(episodes: list[DotEpisode]) -> list[str]:
    for episode in episodes:
        episode.instruction = "move"
    return []


def scene_gives_task_away(episodes: list[DotEpisode]) -> list[str]:
    for episode in episodes:
        if episode.instruction == "go left":
            for images in episode.images.values():
                images[:, :6] = 0
    return ["train/0"]


def leak(episodes: list[DotEpisode]) -> list[str]:
    episodes[3] = copy.deepcopy(episodes[1])
    episodes[3].split, episodes[3].number = "test", 3
    noise = np.random.default_rng(0).integers(0, 3, episodes[3].images["front"].shape).astype(np.uint8)
    episodes[3].images["front"] -= noise  # as encoded again
    return ["test/3", "train/1"]


def not_finite(episodes: list[DotEpisode]) -> list[str]:
    episodes[0].states[3, 1] = np.nan
    return ["train/0"]


def silent(episodes: list[DotEpisode]) -> list[str]:
    episodes[0].instruction = " "
    return ["train/0"]


FAULTS: list[tuple[str, Callable[[list[DotEpisode]], list[str]]]] = [
    ("blank_frames", black), ("blank_frames", one_colour), ("frozen_frames", frozen), ("repeated_frames", repeated),
    ("swapped_cameras", swapped), ("action_lag", late_actions), ("action_lag", early_actions),
    ("constant_dimensions", constant), ("clipped_dimensions", clipped), ("gripper_sign", flipped_gripper),
    ("uneven_times", jitter), ("uneven_times", gap), ("uneven_times", backwards), ("uneven_times", wrong_rate),
    ("conflicting_labels", contradictions), ("unused_instruction", one_instruction),
    ("unused_instruction", scene_gives_task_away), ("leaks_between_splits", leak), ("unusable_values", not_finite),
    ("unusable_values", silent),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[fault.__name__ for _, fault in FAULTS])
def test_a_detector_finds_its_fault_in_the_spoilt_episodes(name, fault):
    episodes = copy.deepcopy(GOOD)
    spoilt = fault(episodes)
    [detector] = [detector for detector in DETECTORS if detector.__name__ == name]
    findings = [*detector(dot_data(episodes))]
    assert {finding.detector for finding in findings} == {name}
    found = {f"{place.split}/{place.number}" for finding in findings for place in finding.places}
    assert set(spoilt) <= found if spoilt else not found
    if len(spoilt) < 4 and name != "unused_instruction":
        assert found == set(spoilt)
    assert all(finding.advice and finding.text for finding in findings)


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: detector.__name__)
def test_a_detector_finds_nothing_in_sound_data(detector):
    assert not [*detector(dot_data(GOOD))]


def test_every_detector_has_a_fault_and_a_heading_in_the_guide():
    names = {detector.__name__ for detector in DETECTORS}
    assert {name for name, _ in FAULTS} == names
    text = (ROOT / "docs" / "guides" / "doctor.md").read_text(encoding="utf-8")
    assert not [name for name in (*names, "check", "unreadable") if f"### {name}\n" not in text]


@pytest.mark.parametrize(("shift", "lead"), [(0, 1), (1, 0), (2, -1), (-1, 2), (-3, 4)])
def test_the_lead_of_absolute_and_relative_actions_is_exact(shift, lead):
    relative, absolute = copy.deepcopy(GOOD), copy.deepcopy(GOOD)
    for one, other in zip(relative, absolute, strict=True):
        target = other.states[:, :2] + other.actions[:, :2]  # where the step ends
        one.actions[:, :2] = np.roll(one.actions[:, :2], shift, axis=0)
        other.actions[:, :2] = np.roll(target, shift, axis=0)
    assert lead_of(dot_data(relative).episodes, 0, 0, False)[0] == lead
    assert lead_of(dot_data(absolute).episodes, 0, 0, True)[0] == lead


def test_a_smooth_motion_still_shows_its_lag():
    episodes = copy.deepcopy(GOOD)
    for episode in episodes:
        smooth = np.convolve(np.random.default_rng(episode.number).normal(size=60), np.ones(8) / 8, "valid")[:40]
        episode.actions[:, 0] = np.roll(smooth, 1)
        episode.states[:, 0] = np.concatenate([[0], smooth[:-1]]).cumsum()
    assert lead_of(dot_data(episodes).episodes, 0, 0, False)[0] == 0


def test_a_gripper_without_a_state_is_compared_with_others_of_its_task():
    sound, episodes = copy.deepcopy(GOOD), copy.deepcopy(GOOD)
    spoilt = flipped_gripper(episodes)
    for episode in [*sound, *episodes]:
        episode.states = episode.states[:, :2]
    [detector] = [detector for detector in DETECTORS if detector.__name__ == "gripper_sign"]
    states = dot_data(GOOD).states[:2]
    [finding] = detector(dot_data(episodes, states=states))
    assert {f"{place.split}/{place.number}" for place in finding.places} == set(spoilt)
    assert not [*detector(dot_data(sound, states=states))]


def test_short_and_empty_sets_raise_nothing():
    without_numbers = dot_episode(0)
    without_numbers.actions, without_numbers.states = np.zeros((40, 0)), np.zeros((40, 0))
    for data in (dot_data([dot_episode(0, length=1)]), dot_data([dot_episode(0, length=2), dot_episode(1, length=3)]),
                 dot_data([without_numbers], actions=(), states=())):
        for detector in DETECTORS:
            [*detector(data)]
