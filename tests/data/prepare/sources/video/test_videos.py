from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from videos import cut, write_video

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.video.decode import VideoInfo
from agent_jax.data.prepare.sources.video.videos import camera_name, first_info, is_footage, open_footage


def write_frames(folder, numbers):
    folder.mkdir()
    for number in numbers:
        Image.fromarray(np.full((6, 8, 3), number, np.uint8)).save(folder / f"take2_{number}.png")
    return folder


def test_folder_of_frames_is_read_in_numeric_order_byte_for_byte(tmp_path):
    folder = write_frames(tmp_path / "a", range(8, 12))  # by name, 10 would come before 8
    footage = open_footage(folder, frames_hz=5.0)
    assert footage.info == VideoInfo(4, 5.0, 6, 8)
    assert list(footage.images()) == [(folder / f"take2_{number}.png").read_bytes() for number in range(8, 12)]


def test_folder_with_a_gap_without_numbers_or_without_rate_is_refused(tmp_path):
    with pytest.raises(BadDataError, match=r"a: found take2_9.png after take2_7.png, expected frame 8"):
        open_footage(write_frames(tmp_path / "a", [6, 7, 9]), 5.0)
    with pytest.raises(BadDataError, match=r"set config.options.frames_hz"):
        open_footage(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "first.png").write_bytes(b"")
    with pytest.raises(BadDataError, match=r"first.png: has no number"):
        open_footage(tmp_path / "b", 5.0)
    (tmp_path / "b" / "first.png").rename(tmp_path / "b" / "0.png")
    with pytest.raises(BadDataError, match=r"0.png: cannot be read as an image"):
        open_footage(tmp_path / "b", 5.0)


def test_errors_of_a_video_are_bad_data(tmp_path):
    path = cut(write_video(tmp_path / "a.mp4", options={"movflags": "faststart"}), 0.9, tmp_path / "b.mp4")
    with pytest.raises(BadDataError, match=r"b.mp4.* cut off"):
        list(open_footage(path).images())
    (tmp_path / "c.mp4").write_text("no video")
    with pytest.raises(BadDataError, match=r"c.mp4: cannot be opened"):
        open_footage(tmp_path / "c.mp4")


def test_first_info_is_that_of_the_first_video_that_opens(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    write_video(tmp_path / "b.mp4")
    paths = [tmp_path / "none.mp4", tmp_path / "a.mp4", tmp_path / "b.mp4"]
    info = first_info(paths)
    assert (info.height, info.width) == (48, 64)
    with pytest.raises(BadDataError, match=r"none.mp4: not found"):
        first_info(paths[:2])


def test_camera_is_stored_under_the_name_of_the_config():
    assert camera_name(PrepareConfig()) == "rgb"
    assert camera_name(PrepareConfig(cameras={"screen": ""})) == "screen"
    with pytest.raises(ValueError, match="config.cameras: found a, b, expected one"):
        camera_name(PrepareConfig(cameras={"a": "", "b": ""}))


def test_footage_is_a_video_by_suffix_or_a_folder_of_images(tmp_path):
    write_frames(tmp_path / "a", [1])
    (tmp_path / "b").mkdir()
    assert [is_footage(tmp_path / name) for name in ("a", "b", "c.MP4", "c.csv")] == [True, False, True, False]
