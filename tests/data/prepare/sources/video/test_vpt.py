from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from videos import cut, frame_number, trimmed, write_video
from vpt_pairs import tick, write_pair

from agent_jax.actions.vocabulary import MINECRAFT_BUTTONS
from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.images import prepare_image
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.source import SourceEpisode, SourceStep
from agent_jax.data.prepare.sources.video.vpt import VptSource, draw_cursor
from agent_jax.data.store.store import open_store

CONFIG = PrepareConfig(instruction_text="chop a tree", window=4, options={"keep_idle": True})


def read(folder: Path, config: PrepareConfig = CONFIG) -> list[tuple[SourceEpisode, list[SourceStep]]]:
    source = open_source("vpt", folder, config)
    return [(episode, list(episode.steps)) for recording in source.recordings() for episode in source.read(recording)]


def pressed(step: SourceStep) -> set[str]:
    return {MINECRAFT_BUTTONS[i] for i in np.flatnonzero(step.actions["buttons"])}


def busy(number: int) -> dict[str, Any]:
    return tick(number, keys=["w", "space"], dx=40)


def test_files_of_a_recording_are_the_pair_and_the_instructions(tmp_path):
    write_pair(tmp_path, "a", [tick(0)] * 4)
    (tmp_path / "texts.csv").write_text("name,instruction\na,chop\n")
    source = open_source("vpt", tmp_path, PrepareConfig(options={"instructions": "texts.csv"}))
    [recording] = source.recordings()
    assert sorted(file.name for file in source.files(recording)) == ["a.jsonl", "a.mp4", "texts.csv"]



def test_keys_buttons_and_mouse_become_the_action_of_the_paper(tmp_path):
    write_pair(tmp_path, "a", [
        tick(0), tick(1, keys=["w", "left.control", "9", "f3"], buttons=[1]),
        tick(2, keys=["escape", "s", "q", "1", "e", "space", "a", "d", "left.shift", "f"], buttons=[0, 2], new=[0]),
        tick(3, dx=40.0, dy=-7.0), tick(4, dx=-2400.0, dy=2400.0),
    ])
    [(episode, steps)] = read(tmp_path)
    assert (episode.name, episode.instruction, episode.start, episode.ends) == ("a", "chop a tree", 0, True)
    assert [pressed(step) for step in steps[:3]] == [
        set(), {"forward", "sprint", "hotbar.9", "use"},
        {"ESC", "back", "drop", "hotbar.1", "inventory", "jump", "left", "right", "sneak", "swapHands", "attack",
         "pickItem"}]
    np.testing.assert_allclose([step.actions["camera"] for step in steps],
                               [[0, 0], [0, 0], [0, 0], [-1.05, 6.0], [50, -49]], rtol=1e-6)
    assert [frame_number(step.images["rgb"]) for step in steps] == [0, 1, 2, 3, 4]


def test_stuck_attack_is_ignored_until_pressed_again(tmp_path):
    held = {"buttons": [0]}
    write_pair(tmp_path, "stuck", [tick(0, new=[0], **held), tick(1, **held), tick(2, buttons=[0, 1]),
                                   tick(3, new=[0], **held), tick(4, **held)])
    write_pair(tmp_path, "true", [tick(0), tick(1, new=[0], **held), tick(2, **held)])
    stuck, true = ([pressed(step) for step in steps] for _, steps in read(tmp_path))
    assert stuck == [set(), set(), {"use"}, {"attack"}, {"attack"}]
    assert true == [set(), {"attack"}, {"attack"}]


def test_slot_change_is_a_press_of_its_key(tmp_path):
    write_pair(tmp_path, "a", [tick(0), tick(1, hotbar=2), tick(2, hotbar=2), tick(3, hotbar=8), tick(4, hotbar=0)])
    [(_, steps)] = read(tmp_path)
    assert [pressed(step) for step in steps] == [set(), {"hotbar.3"}, set(), {"hotbar.9"}, {"hotbar.1"}]


def test_idle_chunks_are_left_out_and_the_rest_keeps_its_frames_and_steps(tmp_path):
    write_pair(tmp_path, "a", [busy(t) if t // 4 in (1, 2, 4) else tick(t, keys=["w"]) for t in range(22)])
    found = read(tmp_path, PrepareConfig(instruction_text="go", window=4))
    assert [(episode.name, episode.start, len(steps), episode.ends) for episode, steps in found] == [
        ("a", 4, 8, False), ("a", 16, 4, False)]
    assert [frame_number(step.images["rgb"]) for _, steps in found for step in steps] == [
        *range(4, 12), *range(16, 20)]
    write_pair(tmp_path, "a", [tick(t) for t in range(8)])
    with pytest.raises(BadDataError, match=r"a.jsonl: every chunk of 4 steps is idle; .*keep_idle=true.*on_error=skip"):
        read(tmp_path, PrepareConfig(instruction_text="go", window=4))


def test_cursor_is_drawn_only_while_a_screen_is_open(tmp_path):
    write_pair(tmp_path, "a", [tick(0), tick(1, gui=True, at=(600.0, 300.0))])
    off = PrepareConfig(instruction_text="go", options={"keep_idle": True, "cursor": False})
    [(_, with_cursor)], [(_, without)] = read(tmp_path), read(tmp_path, off)
    changed = [np.argwhere(np.any(np.asarray(a.images["rgb"]) != np.asarray(b.images["rgb"]), axis=2))
               for a, b in zip(with_cursor, without, strict=True)]
    assert not len(changed[0])
    assert changed[1].min(axis=0).tolist() == [300 * 48 // 720, 600 * 48 // 720]  # row, column of the tip
    assert changed[1].max(axis=0).tolist() == [20 + 10, 40 + 7]


def test_cursor_with_huge_coordinates_is_outside(tmp_path):
    write_pair(tmp_path, "a", [tick(0, gui=True, at=(1e308, -1e308)), tick(1)])
    write_video(tmp_path / "a.mp4", 2, size=(1440, 64))
    [(_, steps)] = read(tmp_path)
    assert len(steps) == 2


def test_cursor_outside_of_the_image_changes_nothing():
    image = np.full((20, 20, 3), 7, np.uint8)
    draw_cursor(image, 30, -40)
    assert (image == 7).all()


@pytest.mark.parametrize(("lines", "frames", "message"), [
    (8, 9, r"a.jsonl:8: the last of 8 lines, expected 9.* --config.options.trailing=1"),
    (9, 8, r"a.jsonl:9: the last of 9 lines, expected 8"),
])
def test_surplus_lines_or_frames_are_refused_unless_allowed(tmp_path, lines, frames, message):
    write_pair(tmp_path, "a", [busy(t) for t in range(lines)], frames)
    with pytest.raises(BadDataError, match=message):
        read(tmp_path)
    allowed = PrepareConfig(instruction_text="go", options={"trailing": 1})
    [(episode, steps)] = read(tmp_path, allowed)
    assert (len(steps), episode.ends) == (8, True)


def test_lines_are_paired_with_the_frames_that_an_edit_list_shows(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 29, b_frames=2)
    write_pair(tmp_path / "pairs", "a", [tick(t, dx=t) for t in range(15, 29)])
    trimmed(whole, 0.75, tmp_path / "pairs" / "a.mp4")  # holds the frames 12 to 28, shows 15 to 28
    [(_, steps)] = read(tmp_path / "pairs")
    assert [frame_number(step.images["rgb"]) for step in steps] == list(range(15, 29))
    np.testing.assert_allclose([step.actions["camera"][1] for step in steps], [0.15 * t for t in range(15, 29)])


@pytest.mark.parametrize("lines", [17, 15, 13])
@pytest.mark.parametrize("trailing", [0, 9])
def test_lines_that_do_not_match_an_edit_list_are_refused_with_both_counts(tmp_path, lines, trailing):
    whole = write_video(tmp_path / "whole.mp4", 29, b_frames=0)
    write_pair(tmp_path / "pairs", "a", [busy(t) for t in range(lines)])
    trimmed(whole, 0.75, tmp_path / "pairs" / "a.mp4")
    config = PrepareConfig(instruction_text="go", options={"trailing": trailing})
    with pytest.raises(BadDataError, match=f"a.jsonl:{lines}: the last of {lines} lines, expected 14.*a.mp4 that a "
                                           "player shows. The file holds 17 frames; an edit list hides 3"):
        read(tmp_path / "pairs", config)


@pytest.mark.parametrize(("line", "message"), [
    ("{", "a.jsonl:3: is not JSON"),
    (json.dumps({**busy(2), "mouse": 3}), "a.jsonl:3: found mouse=3, expected a JSON object"),
    (json.dumps({**busy(2), "keyboard": {}}), "a.jsonl:3: found keyboard.keys=None, expected a JSON list"),
    (json.dumps({**busy(2), "keyboard": {"keys": [["w"]]}}),
     r"a.jsonl:3: found keyboard.keys=\[\['w'\]\], expected a JSON list of strings"),
    (json.dumps(tick(2, buttons=[0])).replace("[0]", "[{}]"),
     r"a.jsonl:3: found mouse.buttons=\[{}\], expected a JSON list of integers"),
    (json.dumps(busy(2)).replace('"dx": 40', f'"dx": 1{"0" * 400}'), "a.jsonl:3: found 10+, .*column 'dx'"),
    (json.dumps(busy(2)).replace('"dx": 40', '"dx": ' + "[" * 9**5), "a.jsonl:3: is .*JSON"),
    (json.dumps({**busy(2), "hotbar": 9}), "a.jsonl:3: found hotbar=9, expected a slot from 0 to 8"),
    (json.dumps({**busy(2), "isGuiOpen": "no"}), "a.jsonl:3: found isGuiOpen='no', expected a JSON true or false"),
    (json.dumps(busy(2)).replace('"dx": 40', '"dx": NaN'), "a.jsonl:3: found nan, .*column 'dx'"),
])
def test_wrong_line_is_reported(tmp_path, line, message):
    write_pair(tmp_path, "a", [busy(t) for t in range(4)])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(BadDataError, match=message):
        read(tmp_path)


def test_other_rate_truncated_video_and_missing_file_are_refused(tmp_path):
    write_pair(tmp_path / "rate", "a", [busy(t) for t in range(4)], rate_hz=30)
    with pytest.raises(BadDataError, match="a.mp4: found 30 frames a second, expected 20"):
        read(tmp_path / "rate")
    whole = write_pair(tmp_path / "cut", "a", [busy(t) for t in range(30)])
    cut(whole, 0.9, whole.with_name("b.mp4")).replace(whole)
    with pytest.raises(BadDataError, match=r"a.mp4, frame \d+ after .* cut off"):
        read(tmp_path / "cut")
    (tmp_path / "cut" / "a.jsonl").unlink()
    with pytest.raises(BadDataError, match=r"a.jsonl: not found; expected a pair"):
        read(tmp_path / "cut")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="bare: found no mp4 or jsonl file"):
        read(tmp_path / "bare")


def test_invalid_config_is_reported(tmp_path):
    write_pair(tmp_path, "a", [busy(t) for t in range(4)])
    for config, message in (
        (PrepareConfig(instruction_text="go", rate_hz=10.0), "config.rate_hz=10.0: expected 0 or 20"),
        (PrepareConfig(instruction_text="go", options={"curser": True}), "config.options.curser: .*'cursor'"),
        (PrepareConfig(instruction_text="go", cameras={"a": "", "b": ""}), "config.cameras: found a, b, expected one"),
        (PrepareConfig(instruction_text="go", fields={"camera": "x"}), "config.fields.camera: this source takes no"),
        (PrepareConfig(), "found neither of config.instruction_text"),
    ):
        with pytest.raises(ValueError, match=message):
            VptSource(tmp_path, config)


def test_pairs_are_prepared_and_read_back(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "store"
    for number, name in enumerate("abc"):
        write_pair(raw / "6.9", name, [tick(t, keys=["w", "a"], dx=10 * t, dy=7) if t // 9 != 1 else tick(t)
                                       for t in range(29 - number)])
    (raw / "texts.csv").write_text("name,instruction\na,chop\nb,dig\nc,swim\n")
    (raw / "6.9" / "broken.jsonl").write_text("{}\n")
    command = ["prepare", "--source", "vpt", "--path", str(raw), "--out", str(out), "--config.window=9",
               "--config.image_size=16", "--config.encoding=png", "--config.validation=0.5",
               "--config.options.instructions=texts.csv"]
    assert main(command) == 2
    assert "broken.mp4: not found" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--on_error=skip"]) == 0
    store = open_store(out)
    rows = {}
    for split in ("train", "test"):
        for record in range(len(store.split(split))):
            episode = store.split(split)[record]
            rows[episode.texts("instruction")[0], int(episode.value("start"))] = episode
    assert sorted(rows) == [("chop", 0), ("chop", 18), ("dig", 0), ("dig", 18), ("swim", 0), ("swim", 18)]
    episode = rows["dig", 18]
    assert episode.steps == 28 - 18
    np.testing.assert_allclose(episode.values("steps/camera", 0, 3), [[1.05, 1.5 * t] for t in (18, 19, 20)], rtol=1e-6)
    whole = read(raw / "6.9" / "b.mp4")[0][1][18].images["rgb"]
    np.testing.assert_array_equal(prepare_image(episode.values("steps/observation/rgb", 0, 1)[0], 16),
                                  prepare_image(whole, 16))
