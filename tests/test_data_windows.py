from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from data_stores import (
    BABYAI_FEATURES,
    babyai_domain,
    babyai_episodes,
    babyai_store,
    language_table_domain,
    language_table_store,
)

from agent_jax.batch import RowSize
from agent_jax.data import windows as windows_module
from agent_jax.data.layout import lay_out, window_need
from agent_jax.data.store import open_store
from agent_jax.data.transforms import prepare_image
from agent_jax.data.windows import Windows, split_index, window_seed
from agent_jax.data.writer import write_store


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


@pytest.mark.parametrize("kind", ["tiles", "table", "video"])
def test_the_plan_counts_what_the_windows_take(tmp_path, kind):
    if kind == "tiles":
        windows = Windows(babyai_domain(), babyai_store(tmp_path / "set"), "train")
    else:
        windows = Windows(language_table_domain(video=kind == "video"), language_table_store(tmp_path / "set"), "train")
    for number, need in enumerate(windows.needs(visual_tokens=5).tolist()):
        window = windows.read(number, 0)
        found = window_need(window, 5)
        assert need == [found.frames, found.slots, found.targets]
        lay_out([window], RowSize(need[0], 16, need[1], need[2]), 5, 4)


def test_a_window_takes_the_instruction_of_its_first_step(tmp_path):
    store = language_table_store(tmp_path / "set", (3, 8), change=4)
    index = split_index(store, "train", "steps/observation/instruction")
    assert index.texts == ("push block 0 left \N{RIGHTWARDS ARROW}", "push block 1 left \N{RIGHTWARDS ARROW}", "stop")
    assert index.text_of_step.tolist() == [0] * 3 + [1] * 4 + [2] * 4
    domain = language_table_domain()
    windows = Windows(domain, store, "train")
    for number, text in enumerate(index.texts):
        np.testing.assert_array_equal(windows.read(number, 0).text_ids, domain.text_ids(text))


def test_an_instruction_longer_than_the_domain_allows_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"raise config.data.domains.babyai.max_text to 11 or more"):
        Windows(babyai_domain(max_text=8), babyai_store(tmp_path / "set"), "train")


def test_the_index_is_kept_until_the_files_change(tmp_path, monkeypatch):
    store = babyai_store(tmp_path / "set")
    first = split_index(store, "train", "instruction")
    scan = windows_module._scan
    scanned = []
    monkeypatch.setattr(windows_module, "_scan", lambda *a: scanned.append(a) or scan(*a))
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


def test_a_damaged_index_is_made_anew(tmp_path, cache):
    store = babyai_store(tmp_path / "set")
    split_index(store, "train", "instruction")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 100):
        file.write_bytes(damaged)
        assert split_index(store, "train", "instruction").length_N.tolist() == [6, 1, 4, 5, 9, 2]


def test_the_seed_follows_recording_start_and_turn(tmp_path):
    store = babyai_store(tmp_path / "set", (8, 8))
    windows = Windows(babyai_domain(), store, "train")
    seeds = [windows.read(number, turn).seed for number in range(4) for turn in range(3)]
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
    first = episode.values(domain.image, int(windows.start[number]), int(windows.start[number]) + 1)[0]
    np.testing.assert_array_equal(window.steps[0].frames[0], prepare_image(first, 32))
