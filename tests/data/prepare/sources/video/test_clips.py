from __future__ import annotations

import numpy as np
import pytest
from cines import grey_cine
from videos import cut, frame_number, write_video

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.video.clips import open_cine, whole_clips


@pytest.mark.parametrize(("start_s", "stop_s", "rate_hz"), [
    (0.0, 0.6, 0.0), (0.0, 0.6, 10.0), (0.0, 0.6, 8.0), (0.12, 0.44, 0.0), (0.1, 0.45, 20.0), (0.13, 0.6, 7.0),
    (0.0, 0.6, 4 / 0.6), (0.5, 9.0, 0.0),
])
def test_cine_and_video_of_equal_content_give_equal_frames(tmp_path, start_s, stop_s, rate_hz):
    video = open_cine(write_video(tmp_path / "a.mp4", 12), 0.0)
    dicom = open_cine(grey_cine(tmp_path / "a.dcm"), 0.0)
    assert (video.length_s, video.info.rate_hz, video.is_dicom) == (0.6, 20.0, False)
    assert (dicom.length_s, dicom.info.rate_hz, dicom.is_dicom) == (0.6, 20.0, True)
    expected = [frame_number(image) for image in video.images(start_s, stop_s, rate_hz)]
    assert [int(image[0, 0, 0]) // 10 for image in dicom.images(start_s, stop_s, rate_hz)] == expected
    assert expected


def test_stretch_shorter_than_a_frame_is_not_the_whole_cine(tmp_path):
    dicom = open_cine(grey_cine(tmp_path / "a.dcm"), 0.0)
    assert list(dicom.images(0.11, 0.13, 0.0)) == []


def test_rate_above_the_cine_is_refused(tmp_path):
    for path in (write_video(tmp_path / "a.mp4", 12), grey_cine(tmp_path / "a.dcm")):
        with pytest.raises(BadDataError, match=f"{path.name}: found 20 frames a second, expected at least"):
            list(open_cine(path, 0.0).images(0.0, 0.6, 30.0))


def test_cine_without_rate_takes_the_option(tmp_path):
    path = grey_cine(tmp_path / "a.dcm", FrameTime=None)
    assert open_cine(path, 24.0).info.rate_hz == 24.0
    with pytest.raises(BadDataError, match=r"a.dcm: names no rate; set config.options.dicom_hz"):
        open_cine(path, 0.0)


def test_files_that_cannot_be_opened_or_decoded_are_bad_data(tmp_path):
    with pytest.raises(BadDataError, match=r"none.mp4: not found"):
        open_cine(tmp_path / "none.mp4", 0.0)
    path = cut(grey_cine(tmp_path / "a.dcm"), 0.95, tmp_path / "cut.dcm")
    with pytest.raises(BadDataError, match=r"cut.dcm"):
        list(open_cine(path, 0.0).images(0.0, 1.0, 0.0))


def test_only_whole_clips_are_used():
    def numbers(count, window, **which):
        images = iter(np.arange(count)[:, None, None, None])
        return [int(image[0, 0, 0]) for image in whole_clips(images, window, **which)]

    assert numbers(10, 4) == list(range(8))
    assert numbers(3, 4) == []
    assert numbers(10, 4, first_only=True) == [0, 1, 2, 3]
