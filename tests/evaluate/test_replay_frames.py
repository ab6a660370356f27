from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from data_stores import language_table_domain, language_table_store
from recorded_babyai import recorded_store, tiny_agent
from tiny_checkpoints import make_checkpoint

from agent_jax.data.images import prepare_image
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.offline import evaluate_offline
from agent_jax.evaluate.replay_frames import ReplayedFrames, replay_frames
from agent_jax.policy import Policy, observation

pytest.importorskip("minigrid")


def replayed(path: Path, store, split: str, most: int = 0) -> ReplayedFrames:
    trained = TrainedRun.load(path)
    return replay_frames(trained, trained.params(), Policy.load(path), store, split, most=most)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "replay_frames"


def test_acting_and_the_evaluation_forward_choose_the_same(base: Path) -> None:
    store = recorded_store(base / "store")
    found = replayed(tiny_agent(base / "agent").path, store, "test")
    assert found.choices == sum(episode.steps for episode in store.split("test"))  # one choice an action
    assert found.different == 0
    assert found.largest_difference < 1e-4
    assert found.forward_accuracy == pytest.approx(found.acting_accuracy, abs=found.near_ties / found.choices)
    assert 0 < found.forward_accuracy < 1


def test_offline_evaluation_of_the_same_rows_counts_the_same_choices(base: Path, tmp_path: Path) -> None:
    store = recorded_store(base / "store")
    made = tiny_agent(base / "agent")
    trained = TrainedRun.load(made.path)
    offline = evaluate_offline(trained, trained.params(), trained.domain(), data=str(store.directory), split="test")
    assert offline.choices is not None
    assert offline.action is not None
    assert offline.action.count == 3 * offline.choices.choices  # of [STARTACTION] [forward] [ENDOFACTION] one is chosen
    assert offline.action.accuracy == offline.choices.accuracy
    found = replayed(made.path, store, "test")
    assert offline.choices == found.forward
    assert offline.choices.exact == offline.choices.accuracy == found.forward_accuracy

    # Binned numbers with units, two choices an action.
    fields = {"max_text": 80, "instruction": language_table_domain().instruction, "window": 1, "stride": 1}
    table = make_checkpoint(tmp_path / "table", ("table",), domain_fields=fields).path
    store = language_table_store(tmp_path / "store")
    trained = TrainedRun.load(table)
    scores = evaluate_offline(trained, trained.params(), trained.domain(), data=str(store.directory), split="train")
    found = replayed(table, store, "train")
    assert scores.choices is not None
    assert (scores.choices.choices, scores.choices.actions) == (2 * 17, 17)
    assert [(one.name, one.unit) for one in scores.choices.errors] == [("dx", "m"), ("dy", "m")]
    assert dataclasses.replace(scores.choices, errors=()) == dataclasses.replace(found.forward, errors=())
    for ours, theirs in zip(scores.choices.errors, found.forward.errors, strict=True):
        assert (ours.name, ours.unit, ours.count) == (theirs.name, theirs.unit, theirs.count)
        assert ours.mean_absolute_error == pytest.approx(theirs.mean_absolute_error)
        assert 0.003 < ours.mean_absolute_error < 0.06  # metres, of bins of 3 mm over 6 cm


def test_a_different_preprocessing_in_acting_is_a_difference(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "prepare_image", lambda image, size: prepare_image(image, size)[..., ::-1])
    found = replayed(tiny_agent(base / "agent").path, recorded_store(base / "store"), "test")
    assert found.different > 0
    assert found.largest_difference > 1e-2


def test_states_several_choices_and_padded_windows_are_compared(base: Path, tmp_path: Path) -> None:
    fields = {"max_text": 80, "instruction": language_table_domain().instruction}
    made = make_checkpoint(tmp_path / "table", ("table",), domain_fields=fields)
    store = language_table_store(tmp_path / "store")  # 6, 8 and 3 steps: the second ends in a padded window
    found = replayed(made.path, store, "train")
    terminal = sum(len(np.unique(np.arange(0, steps, 3))) for steps in (6, 8, 3))
    assert found.windows == terminal == 6
    assert found.choices == 2 * 17  # x and y of every step, without padding
    assert found.different == 0
    assert found.largest_difference < 1e-4


@pytest.mark.parametrize("video", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_several_actions_per_image_are_compared_in_windows_that_end_amid_them(base: Path, tmp_path: Path, *,
                                                                              video: bool) -> None:
    fields = {"max_text": 40, "window": 4, "stride": 4, "actions_per_image": 2, "video": video}
    made = make_checkpoint(tmp_path / "agent", ("babyai",), domain_fields=fields, temporal_attention=video)
    store = recorded_store(base / "store")
    lengths = [episode.steps for episode in store.split("test")]
    assert any(length % 2 for length in lengths)
    found = replayed(made.path, store, "test")
    assert found.choices == (2 * sum(length // 4 for length in lengths) if video else sum(lengths))
    assert found.different == 0
    assert found.largest_difference < 1e-4
    if not video:
        trained = TrainedRun.load(made.path)
        scores = evaluate_offline(trained, trained.params(), trained.domain(), data=str(store.directory), split="test")
        assert scores.choices == found.forward


def test_a_split_with_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    fields = {"max_text": 58, "instruction": language_table_domain().instruction, "video": True, "window": 9}
    made = make_checkpoint(tmp_path / "video", ("table",), domain_fields=fields | {"stride": 9},
                           temporal_attention=True)
    store = language_table_store(tmp_path / "store")  # no episode has more than 8 steps, so all windows are padded
    with pytest.raises(ValueError, match="split 'train': found nothing to compare in 3 windows, expected windows of 9"):
        replayed(made.path, store, "train")


def test_the_last_step_of_a_clip_is_compared_and_windows_can_be_limited(base: Path, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "video", ("babyai",), domain_fields={"max_text": 40, "video": True},
                           temporal_attention=True)
    store = recorded_store(base / "store")
    found = replayed(made.path, store, "test", most=3)
    assert found.windows == 3
    assert 1 <= found.choices <= 3
    assert (found.different, dataclasses.asdict(found)["largest_difference"] < 1e-4) == (0, True)
