from __future__ import annotations

import numpy as np
import pytest
from gamepads import pad_row, write_play, write_table
from PIL import Image
from videos import cut, frame_number, trimmed, with_frame_count, write_video

from agent_jax.actions import BLEEDING_EDGE, MINECRAFT
from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.store.store import open_store


def read(folder, **config):
    source = open_source("gamepad", folder, PrepareConfig(instruction_text="win", **config))
    return [(episode, list(episode.steps)) for recording in source.recordings() for episode in source.read(recording)]


def test_video_and_table_become_an_episode(tmp_path):
    write_play(tmp_path, "a")
    [(episode, steps)] = read(tmp_path)
    assert (episode.name, episode.instruction, episode.start, episode.ends) == ("a", "win", 0, True)
    assert [frame_number(np.asarray(step.images["rgb"])) for step in steps] == list(range(12))
    assert [int(step.actions["buttons"].sum()) for step in steps] == [1, 0, 0] * 4
    np.testing.assert_allclose(steps[3].actions["right_stick"], [0, -0.25])


def test_folder_of_frames_is_copied_byte_for_byte(tmp_path):
    folder = tmp_path / "play.v1"
    folder.mkdir()
    for t in range(4):
        Image.fromarray(np.full((16, 16, 3), 40 * t, np.uint8)).save(folder / f"{t}.jpg")
    write_table(tmp_path / "play.v1.parquet", [pad_row(["Jump"], frame=t) for t in range(4)])
    [(_, steps)] = read(tmp_path, options={"frames_hz": 20.0})
    assert [step.images["rgb"] for step in steps] == [(folder / f"{t}.jpg").read_bytes() for t in range(4)]


def test_files_of_a_recording_are_its_frames_and_tables(tmp_path):
    write_play(tmp_path, "a")
    (tmp_path / "b").mkdir()
    for t in range(2):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "b" / f"{t}.png")
    write_table(tmp_path / "b.csv", [pad_row(frame=t) for t in range(2)])
    (tmp_path / "texts.csv").write_text("name,instruction\na,win\nb,win\n")
    source = open_source("gamepad", tmp_path, PrepareConfig(options={"instructions": "texts.csv", "frames_hz": 20.0}))
    found = [sorted(file.name for file in source.files(recording)) for recording in source.recordings()]
    assert found == [["a.csv", "a.mp4", "texts.csv"], ["0.png", "1.png", "b.csv", "texts.csv"]]



def test_lower_rate_keeps_every_kth_frame_with_all_presses_until_the_next(tmp_path):
    write_play(tmp_path, "a")
    [(_, steps)] = read(tmp_path, rate_hz=10.0)
    assert [frame_number(np.asarray(step.images["rgb"])) for step in steps] == [0, 2, 4, 6, 8, 10]
    assert [int(step.actions["buttons"].sum()) for step in steps] == [1, 1, 0, 1, 1, 0]
    np.testing.assert_allclose(steps[1].actions["right_stick"], [0, -2 / 12], rtol=1e-6)


def test_rate_that_does_not_divide_the_video_rate_is_refused(tmp_path):
    write_play(tmp_path, "a", rate_hz=20)
    with pytest.raises(BadDataError, match="a.mp4: found 20 frames a second, expected 15 or a multiple of it"):
        read(tmp_path, rate_hz=15.0)
    write_play(tmp_path, "b", rate_hz=30)
    with pytest.raises(BadDataError, match="b.mp4: found 30 frames a second, expected 20"):
        read(tmp_path)


def test_idle_chunks_are_left_out_by_the_option(tmp_path):
    rows = [pad_row(["Jump", "Evade"] if 4 <= t < 8 else [], frame=t) for t in range(12)]
    write_table(tmp_path / "a.csv", rows)
    write_video(tmp_path / "a.mp4", 12)
    [(episode, steps)] = read(tmp_path, window=4, options={"drop_idle": True})
    assert (episode.start, episode.ends) == (4, False)
    assert [frame_number(np.asarray(step.images["rgb"])) for step in steps] == [4, 5, 6, 7]
    assert len(read(tmp_path, window=4)[0][1]) == 12
    write_table(tmp_path / "a.csv", [pad_row(frame=t) for t in range(12)])
    with pytest.raises(BadDataError, match="a.csv: every chunk of 4 steps is idle"):
        read(tmp_path, window=4, options={"drop_idle": True})


def test_missing_file_truncated_video_and_duplicate_recording_are_refused(tmp_path):
    write_play(tmp_path / "half", "a")
    (tmp_path / "half" / "b.csv").write_text("frame\n")
    with pytest.raises(BadDataError, match="found b.csv for the recording 'b', expected one video or folder"):
        read(tmp_path / "half")
    write_play(tmp_path / "cut", "a")
    whole = write_video(tmp_path / "whole.mp4", 12, options={"movflags": "faststart"})
    cut(whole, 0.95, tmp_path / "cut" / "a.mp4")
    with pytest.raises(BadDataError, match=r"a.mp4.* cut off"):
        read(tmp_path / "cut")
    write_play(tmp_path / "double", "a")
    write_video(tmp_path / "double" / "a.avi", 12)
    with pytest.raises(BadDataError, match="found a.avi, a.mp4, a.csv for the recording 'a'"):
        read(tmp_path / "double")
    (tmp_path / "bare").mkdir()
    with pytest.raises(FileNotFoundError, match="bare: found no video and no folder"):
        read(tmp_path / "bare")


def test_rows_are_paired_with_the_frames_that_an_edit_list_shows(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 29, b_frames=0)
    folder = tmp_path / "plays"
    folder.mkdir()
    trimmed(whole, 0.75, folder / "a.mp4")  # holds the frames 12 to 28, shows 15 to 28
    for column, unit in (("frame", 1), ("time", 0.05)):
        write_table(folder / "a.csv", [pad_row(sticks=(t / 30, 0, 0, 0), **{column: unit * (t - 15)})
                                       for t in range(15, 29)])
        [(_, steps)] = read(folder)
        assert [frame_number(np.asarray(step.images["rgb"])) for step in steps] == list(range(15, 29))
        np.testing.assert_allclose([30 * step.actions["left_stick"][0] for step in steps], range(15, 29), rtol=1e-6)
    write_table(folder / "a.csv", [pad_row(frame=t) for t in range(17)])
    with pytest.raises(BadDataError, match="a.csv:18: the last of 17 rows, expected 14.* shows. The file holds 17"):
        read(folder)


@pytest.mark.parametrize(("counted", "message"), [
    (11, "a.avi: shows 12 frames, expected 11 as its header counts"),
    (13, "a.avi: ends after 0.550 s, expected 13 frames"),
])
def test_video_with_another_frame_count_than_its_header_is_refused(tmp_path, counted, message):
    whole = write_video(tmp_path / "whole.avi", 12)
    folder = tmp_path / "plays"
    folder.mkdir()
    with_frame_count(whole, counted, folder / "a.avi")
    write_table(folder / "a.csv", [pad_row(frame=t) for t in range(counted)])
    with pytest.raises(BadDataError, match=message):
        read(folder)


def test_invalid_config_is_reported(tmp_path):
    write_play(tmp_path, "a")
    for config, message in (({"options": {"stick": 1}}, "config.options.stick: .*'sticks'"),
                          ({"fields": {"buttons": "x"}}, "config.fields.buttons: .* config.options.buttons"),
                          ({"action_spec": MINECRAFT.to_dict()}, "found the part camera")):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, **config)
    with pytest.raises(ValueError, match="a.mp4: is a file, expected the folder"):
        read(tmp_path / "a.mp4")


def test_recordings_are_prepared_and_read_back(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "store"
    for name in "ab":
        write_play(raw, name)
    (raw / "texts.csv").write_text("name,instruction\na,hold the hill\nb,take the flag\n")
    assert main(["prepare", "--source", "gamepad", "--path", str(raw), "--out", str(out), "--config.image_size=16",
                 "--config.options.instructions=texts.csv"]) == 0
    store = open_store(out)
    episodes = [store.split(split)[0] for split in ("train", "test")]
    assert {episode.texts("instruction")[0] for episode in episodes} == {"hold the hill", "take the flag"}
    np.testing.assert_allclose(episodes[0].values("steps/right_stick", 0, 12),
                               [[0, -t / 12] for t in range(12)], rtol=1e-6)
    assert store.metadata["action_spec"] == BLEEDING_EDGE.to_dict()
