from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from data_stores import (
    BABYAI_FEATURES,
    CAMERAS,
    babyai_domain,
    babyai_episodes,
    babyai_store,
    clip_domain,
    clip_store,
    game_domain,
    game_store,
    language_table_domain,
    language_table_store,
)

from agent_jax.actions import MINECRAFT
from agent_jax.batch import RowSize
from agent_jax.data.images import prepare_image
from agent_jax.data.pipeline.layout import lay_out, window_usage
from agent_jax.data.pipeline.windows import Windows, window_seed
from agent_jax.data.store import split_index as split_index_module
from agent_jax.data.store.episode import Episode, RecordError
from agent_jax.data.store.split_index import split_index
from agent_jax.data.store.store import open_store
from agent_jax.data.store.writer import episode_features, write_store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AGENT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def starts(windows: Windows) -> list[tuple[int, int, int]]:
    return list(zip(windows.record.tolist(), windows.start.tolist(), windows.steps.tolist(), strict=True))


def test_windows_start_every_stride_steps_of_each_record(tmp_path):
    store = babyai_store(tmp_path / "set", (6, 1, 4))
    assert starts(Windows(babyai_domain(), store, "train")) == [(0, 0, 4), (0, 4, 2), (1, 0, 1), (2, 0, 4)]
    overlapping = Windows(babyai_domain(window=3, stride=2), store, "train")
    assert starts(overlapping) == [(0, 0, 3), (0, 2, 3), (0, 4, 2), (1, 0, 1), (2, 0, 3), (2, 2, 2)]


def test_a_window_holds_the_records_images_actions_and_instruction(tmp_path):
    store = babyai_store(tmp_path / "set", (6, 1))
    domain = babyai_domain()
    record = next(babyai_episodes((6, 1)))
    window = Windows(domain, store, "train").read(1, 0)  # steps 4 and 5
    np.testing.assert_array_equal(window.text_ids, domain.text_ids(record["instruction"]))
    assert window.domain_index == 0
    assert len(window.steps) == 2
    for step, expected in zip(window.steps, record["steps"][4:], strict=True):
        np.testing.assert_array_equal(step.frames[0], expected["observation"]["rgb"])
        np.testing.assert_array_equal(step.action_ids, domain.spec.encode({"action": expected["action"]}))
        assert step.state_ids.tolist() == []
        assert (step.frame_weight, step.action_weight) == (1, 1)


def test_a_short_window_ends_in_terminal_actions_where_the_spec_has_them(tmp_path):
    store = language_table_store(tmp_path / "set", (6, 8))
    domain = language_table_domain()
    windows = Windows(domain, store, "train")
    assert windows.padded.tolist() == [False, True, False, False]
    window = windows.read(1, 0)
    assert [step.frame_weight for step in window.steps] == [1, 1, 0, 0]
    assert [step.action_weight for step in window.steps] == [1, 1, 1, 1]
    terminal = domain.spec.terminal_ids().tolist()
    assert [step.action_ids.tolist() == terminal for step in window.steps] == [False, False, True, True]
    for repeated in window.steps[2:]:
        assert repeated.frames[0] is window.steps[1].frames[0]
        np.testing.assert_array_equal(repeated.state_ids, window.steps[1].state_ids)


def test_of_k_actions_per_image_every_kth_step_has_images_and_state(tmp_path):
    store = language_table_store(tmp_path / "set", (7, 8))
    plain = Windows(language_table_domain(window=8, stride=8), store, "train")
    windows = Windows(language_table_domain(window=8, stride=8, actions_per_image=2), store, "train")
    assert windows.padded.tolist() == [True, False]
    for number in range(2):
        every, window = plain.read(number, 0), windows.read(number, 0)
        assert [len(step.frames) for step in window.steps] == [1, 0] * 4
        for t, (step, expected) in enumerate(zip(window.steps, every.steps, strict=True)):
            np.testing.assert_array_equal(step.action_ids, expected.action_ids)
            np.testing.assert_array_equal(step.action_choices, expected.action_choices)
            np.testing.assert_array_equal(step.state_ids, [] if t % 2 else expected.state_ids)
            if t % 2 == 0:
                np.testing.assert_array_equal(step.frames[0], expected.frames[0])


@pytest.mark.parametrize("recorded", [1, 2, 3, 4, 5])
def test_terminal_actions_amid_those_of_an_image_have_none_and_later_ones_the_last_image(tmp_path, recorded):
    store = language_table_store(tmp_path / "set", (recorded,))
    domain = language_table_domain(window=6, stride=6, actions_per_image=2)
    window, terminal = Windows(domain, store, "train").read(0, 0), domain.spec.terminal_ids().tolist()
    assert [step.action_ids.tolist() == terminal for step in window.steps] == [t >= recorded for t in range(6)]
    assert [len(step.frames) for step in window.steps] == [1, 0] * 3
    assert [step.frame_weight for step in window.steps[::2]] == [float(t < recorded) for t in (0, 2, 4)]
    last = Windows(language_table_domain(window=1, stride=1), store, "train").read(recorded - 1, 0).steps[0]
    for step in window.steps[-(-recorded // 2) * 2 :: 2]:
        np.testing.assert_array_equal(step.frames[0], last.frames[0])
        np.testing.assert_array_equal(step.state_ids, last.state_ids)


def test_the_last_step_of_an_episode_keeps_its_own_action(tmp_path):
    store = language_table_store(tmp_path / "set", (8,))
    domain = language_table_domain()
    window = Windows(domain, store, "train").read(1, 0)
    action = store.split("train")[0].values("steps/action", 7, 8)[0]
    np.testing.assert_array_equal(window.steps[3].action_ids, domain.spec.encode({"action": action}))


def test_the_end_of_a_segment_is_not_the_end_of_its_episode(tmp_path):
    store = language_table_store(tmp_path / "set", (6,), whole=False)
    windows = Windows(language_table_domain(), store, "train")
    assert windows.padded.tolist() == [False, False]
    assert len(windows.read(1, 0).steps) == 2


def test_a_step_not_to_be_imitated_keeps_its_ids_and_has_no_weight(tmp_path):
    record = next(babyai_episodes((3,)))
    record["steps"][1]["action_weight"] = 0.0
    store = write_store(tmp_path / "set", "tiles", BABYAI_FEATURES, {"train": [record]}, {})
    window = Windows(babyai_domain(), store, "train").read(0, 0)
    assert [step.action_weight for step in window.steps] == [1, 0, 1]
    assert len(window.steps[1].action_ids) == 3


KINDS = {
    "tiles": (babyai_domain(), babyai_store),
    "table": (language_table_domain(), language_table_store),
    "video": (language_table_domain(video=True), language_table_store),
    "buttons": (game_domain(), game_store),  # actions of different lengths
    "answer": (clip_domain("answer"), clip_store),
    "tiles, 2 actions": (babyai_domain(actions_per_image=2), babyai_store),
    "table, 2 actions": (language_table_domain(actions_per_image=2), language_table_store),
    "video, 2 actions": (language_table_domain(actions_per_image=2, video=True), language_table_store),
    "buttons, 3 actions": (game_domain(actions_per_image=3), game_store),
    "label of two cameras": (clip_domain("label", cameras=CAMERAS), clip_store),
}


@pytest.mark.parametrize("sampling", ["consecutive", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_planned_usage_is_that_of_the_windows(tmp_path, kind, sampling):
    domain, make = KINDS[kind]
    windows = Windows(dataclasses.replace(domain, sampling=sampling), make(tmp_path / "set"), "train")
    largest = windows.largest_usage(visual_tokens=5)
    for epoch in (0, 5):
        for number, usage in enumerate(windows.usage(5, epoch).tolist()):
            window = windows.read(number, epoch)
            assert usage == window_usage(window, 5).as_array().tolist()
            assert (usage <= largest).all()
            lay_out([window], RowSize(usage[0], 16, usage[1], usage[2]), 5, 4)


def test_each_step_has_an_image_of_every_camera_in_the_order_of_the_domain(tmp_path):
    store = clip_store(tmp_path / "set")
    windows = Windows(clip_domain("answer", cameras=CAMERAS[::-1]), store, "train")
    episode = store.split("train")[0]
    for t, step in enumerate(windows.read(1, 0).steps, start=3):
        assert len(step.frames) == 2
        for image, camera in zip(step.frames, CAMERAS[::-1], strict=True):
            np.testing.assert_array_equal(image, prepare_image(episode.values(camera, t, t + 1)[0], 16))


def test_a_clip_has_the_answer_or_the_label_of_its_record_and_its_text_is_a_prompt(tmp_path):
    store = clip_store(tmp_path / "set")
    domain = clip_domain("answer")
    windows = Windows(domain, store, "train")
    assert windows.record.tolist() == [0, 0, 1, 2, 2, 2]
    for number, (prompt, answer) in {0: ("", "a nurse"), 2: ("who?", "nobody"), 5: ("", "a nurse")}.items():
        window = windows.read(number, 0)
        assert window.text_ids.tolist() == domain.text_ids(prompt).tolist()
        assert window.answer_ids.tolist() == domain.answer_ids(answer).tolist()
        assert (window.prompt, window.video, window.label) == (True, True, -1)
    labelled = Windows(clip_domain("label"), store, "train")
    assert labelled.labels.tolist() == [2, 2, 0, 2, 2, 2]
    assert [labelled.read(number, 0).label for number in range(6)] == labelled.labels.tolist()
    assert not len(labelled.read(0, 0).answer_ids)
    with pytest.raises(ValueError, match=r"the answer 'a nurse' has 8 tokens .*max_answer to 8 or more"):
        Windows(clip_domain("answer", max_answer=7), store, "train")


def test_random_windows_start_elsewhere_in_every_epoch(tmp_path):
    store = babyai_store(tmp_path / "set", (30, 3, 30))
    windows = Windows(babyai_domain(sampling="random"), store, "train", seed=1)
    assert windows.record.tolist() == [0] * 8 + [1] + [2] * 8
    epochs = [windows.cut(epoch).start_W.tolist() for epoch in range(8)]
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert windows.cut(0).start_W.tolist() == epochs[0]  # no longer cached
    assert Windows(babyai_domain(sampling="random"), store, "train", seed=1).cut(3).start_W.tolist() == epochs[3]
    assert Windows(babyai_domain(sampling="random"), store, "train", seed=2).cut(3).start_W.tolist() != epochs[3]
    starts = np.asarray(epochs)
    assert set(np.delete(starts, 8, axis=1).ravel()) == set(range(27))  # no window is cut short
    assert not starts[:, 8].any()  # of a record that is shorter than a window
    assert [len(windows.read(number, 5).steps) for number in range(17)] == [4] * 8 + [3] + [4] * 8
    assert len({windows.read(0, epoch).seed for epoch in range(8)}) == 8


def test_random_windows_run_over_the_end_of_an_episode_if_there_is_a_terminal_action(tmp_path):
    store = language_table_store(tmp_path / "set", (12, 12, 12))
    windows = Windows(language_table_domain(sampling="random"), store, "train")
    cuts = [windows.cut(epoch) for epoch in range(20)]
    assert set(np.concatenate([cut.start_W for cut in cuts])) == set(range(12))
    for cut in cuts:
        np.testing.assert_array_equal(cut.padded_W, cut.start_W > 8)
    segments = Windows(language_table_domain(sampling="random"),
                       language_table_store(tmp_path / "segments", (12,), whole=False), "train")
    assert not any(segments.cut(epoch).padded_W.any() for epoch in range(20))


def test_an_action_that_cannot_be_encoded_is_named_with_its_record(tmp_path):
    features = episode_features((16, 16, 3), MINECRAFT.fields)
    record = next(babyai_episodes((2,)))
    for step in record["steps"]:
        step |= {"buttons": np.zeros(23, bool), "camera": np.full(2, np.nan, np.float32)}
    store = write_store(tmp_path / "set", "game", features, {"train": [record]}, {})
    with pytest.raises(ValueError, match=r"record 0, step 0: camera"):
        Windows(game_domain(), store, "train")


def test_a_window_takes_the_instruction_of_its_first_step(tmp_path):
    store = language_table_store(tmp_path / "set", (3, 8), change=4)
    index = split_index(store, "train", "steps/observation/instruction")
    assert index.texts == ("push block 0 left \N{RIGHTWARDS ARROW}", "push block 1 left \N{RIGHTWARDS ARROW}", "stop")
    assert index.text_of_step.tolist() == [0] * 3 + [1] * 4 + [2] * 4
    domain = language_table_domain()
    windows = Windows(domain, store, "train")
    for number, text in enumerate(index.texts):
        np.testing.assert_array_equal(windows.read(number, 0).text_ids, domain.text_ids(text))


def test_an_instruction_longer_than_the_domain_allows_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"raise config.data.domains.babyai.max_text to 11 or more"):
        Windows(babyai_domain(max_text=8), babyai_store(tmp_path / "set"), "train")


def test_windows_know_their_recording_and_a_part_of_them_may_be_taken(tmp_path):
    store = babyai_store(tmp_path / "set", (8, 3, 9), (5,))
    windows = Windows(babyai_domain(), store, "train")
    first, second, third = dict.fromkeys(windows.recordings.tolist())
    part = windows.subset(windows.recordings != second)
    assert part.recordings.tolist() == [first] * 2 + [third] * 3
    for number, whole in enumerate([0, 1, 3, 4, 5]):
        assert part.read(number, 0).seed == windows.read(whole, 0).seed
    np.testing.assert_array_equal(part.usage(5), np.delete(windows.usage(5), 2, axis=0))
    # Without recording_id it is the episode, by its first record.
    foreign = Windows(language_table_domain(), language_table_store(tmp_path / "foreign", (6, 8, 3)), "train")
    assert len(set(foreign.recordings.tolist())) == 3


def test_the_index_is_cached_until_the_files_change(tmp_path, monkeypatch):
    store = babyai_store(tmp_path / "set")
    first = split_index(store, "train", "instruction")
    scan = split_index_module._scan
    scanned = []
    monkeypatch.setattr(split_index_module, "_scan", lambda *a: scanned.append(a) or scan(*a))
    again = split_index(open_store(tmp_path / "set"), "train", "instruction")
    assert not scanned
    for name in ("length_N", "ends_N", "text_of_step"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert again.texts == first.texts
    os.utime(store.files("train")[0], (1, 1))
    split_index(store, "train", "instruction")
    assert len(scanned) == 1
    split_index(store, "test", "instruction")
    assert len(scanned) == 2


def test_the_data_directory_is_never_written_to_and_a_cache_is_not_needed(tmp_path, monkeypatch, caplog):
    store = babyai_store(tmp_path / "set")
    before = sorted(path.name for path in (tmp_path / "set").iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AGENT_JAX_CACHE", str(tmp_path / "file" / "cache"))  # cannot be made
    assert split_index(store, "train", "instruction").length_N.tolist() == [6, 1, 4, 5, 9, 2]
    assert "set AGENT_JAX_CACHE to a writable directory" in caplog.text
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == before


def test_a_damaged_index_is_rebuilt(tmp_path, cache):
    store = babyai_store(tmp_path / "set")
    split_index(store, "train", "instruction")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100):
        file.write_bytes(damaged)
        assert split_index(store, "train", "instruction").length_N.tolist() == [6, 1, 4, 5, 9, 2]


def test_the_seed_depends_on_recording_start_and_epoch(tmp_path):
    store = babyai_store(tmp_path / "set", (8, 8))
    windows = Windows(babyai_domain(), store, "train")
    seeds = [windows.read(number, epoch).seed for number in range(4) for epoch in range(3)]
    assert len(set(seeds)) == 12
    assert windows.read(1, 0).seed == window_seed("babyai", b"0-0", 4, 0)
    assert window_seed("babyai", b"0-0", 4, 0) == 435684389  # frozen: masks of old runs depend on it


def test_a_segments_seed_counts_from_the_start_of_its_episode(tmp_path):
    record = {**next(babyai_episodes((4,))), "start": 100}
    store = write_store(tmp_path / "set", "tiles", BABYAI_FEATURES, {"train": [record]}, {})
    assert Windows(babyai_domain(), store, "train").read(0, 0).seed == window_seed("babyai", b"0-0", 100, 0)


def test_the_real_language_table_set_is_cut_into_windows(language_table_data):
    store = open_store(language_table_data)
    domain = language_table_domain(image_size=32)
    windows = Windows(domain, store, "test")
    assert windows.steps.sum() == sum(episode.steps for episode in store.split("test"))
    number = int(np.flatnonzero(windows.padded)[0])
    window = windows.read(number, 0)
    assert len(window.steps) == 4
    assert window.steps[-1].action_ids.tolist() == domain.spec.terminal_ids().tolist()
    episode = store.split("test")[int(windows.record[number])]
    first = episode.values(domain.cameras[0], int(windows.start[number]), int(windows.start[number]) + 1)[0]
    np.testing.assert_array_equal(window.steps[0].frames[0], prepare_image(first, 32))


def test_a_record_that_differs_from_the_index_is_named_by_file_record_and_steps(tmp_path):
    store = babyai_store(tmp_path / "set", (6, 1, 4))
    windows = Windows(babyai_domain(), store, "train")
    windows.index.length_N[1] = 2
    shard = store.files("train")[0]
    with pytest.raises(RecordError, match=rf"{shard}, split 'train', record 1: holds 1 steps, expected 2"):
        windows.read(2, 0)
    values = Episode.values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Episode, "values", lambda episode, path, start, stop: [b"no image"] * (stop - start)
                      if path.endswith("rgb") else values(episode, path, start, stop))
        message = rf"{shard}, split 'train', record 0, steps 4 to 5: image: .*Copy the file"
        with pytest.raises(RecordError, match=message):
            windows.read(1, 0)
