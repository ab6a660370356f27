from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from videos import cut, frame_number, sizeless, trimmed, with_frame_count, write_sound, write_video

from agent_jax.data.prepare.sources.video.decode import VideoInfo, read_frames, video_info


def numbers(path: Path, **arguments: float) -> list[int]:
    return [frame_number(frame.image) for frame in read_frames(path, **arguments)]  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def fast(folder: Path) -> Path:
    """An mp4 with its index in front: it opens however much is cut off behind."""
    return write_video(folder / "fast.mp4", options={"movflags": "faststart"})


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".webm"])
def test_every_frame_is_decoded_once_in_order_with_its_time(folder, suffix):
    path = write_video(folder / f"whole{suffix}")
    assert video_info(path) == VideoInfo(frames=30, rate_hz=20.0, height=48, width=64)
    frames = list(read_frames(path))
    assert [frame_number(frame.image) for frame in frames] == list(range(30))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(30) / 20, atol=6e-4)
    assert all(frame.image.dtype == np.uint8 and frame.image.shape == (48, 64, 3) for frame in frames)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".webm"])
def test_stretch_has_the_frames_of_its_times(folder, suffix):
    path = write_video(folder / f"stretch{suffix}")
    assert numbers(path, start_s=0.65, stop_s=0.9) == [13, 14, 15, 16, 17]
    assert numbers(path, start_s=0.62, stop_s=0.86) == [13, 14, 15, 16, 17]
    assert numbers(path, start_s=1.4) == [28, 29]
    assert numbers(path, start_s=9.0) == []


def test_sample_is_the_last_frame_at_or_before_its_time(folder):
    path = write_video(folder / "thirty.mp4", rate_hz=30)
    assert numbers(path, rate_hz=20) == [3 * k // 2 for k in range(20)]
    assert numbers(path, rate_hz=10) == list(range(0, 30, 3))
    assert numbers(path, rate_hz=10, start_s=0.5, stop_s=0.8) == [15, 18, 21]
    assert numbers(path, rate_hz=4, start_s=0.4) == [12, 19, 27]
    assert numbers(path, rate_hz=30) == list(range(30))
    with pytest.raises(ValueError, match="thirty.mp4: found 30 frames a second, expected at least rate_hz=60"):
        numbers(path, rate_hz=60)


def test_rounding_of_matroska_times_moves_no_sample(folder):
    path = write_video(folder / "thirty.mkv", rate_hz=30)
    assert numbers(path, rate_hz=15) == list(range(0, 30, 2))
    assert numbers(path, rate_hz=30) == list(range(30))


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("rate_hz", [0, 10])
def test_truncated_video_is_refused_at_any_length(fast, tmp_path, share, rate_hz):
    path = cut(fast, share, tmp_path / "cut.mp4")
    with pytest.raises(ValueError, match=r"cut.mp4(, frame \d+ after .* s)?: .*cut off"):
        numbers(path, rate_hz=rate_hz)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".webm"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
def test_truncated_files_of_other_containers_are_refused(folder, tmp_path, suffix, share):
    whole = write_video(folder / f"to_cut{suffix}")
    with pytest.raises(ValueError, match=f"cut{suffix}"):
        numbers(cut(whole, share, tmp_path / f"cut{suffix}"))


def test_mp4_without_index_is_refused(folder, tmp_path):
    path = cut(write_video(folder / "slow.mp4"), 0.9, tmp_path / "cut.mp4")
    with pytest.raises(ValueError, match="cut.mp4: cannot be opened as a video .* lacks its index"):
        video_info(path)


def test_damaged_frame_is_refused_with_its_number(fast, tmp_path):
    content = bytearray(fast.read_bytes())
    content[len(content) * 3 // 4] ^= 0xFF
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged.mp4, frame \d+ after \d.\d+ s: .*damaged"):
        numbers(path)


def test_files_that_are_not_videos_are_refused(folder):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("hello\n" * 1000)
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile fast.mp4\n")
    write_sound(folder / "sound.mp4")
    for name, message in (("empty.mp4", "found 0 bytes"), ("text.mp4", "cannot be opened as a video"),
                        ("list.mp4", "cannot be opened as a video"), ("sound.mp4", "holds audio, expected a video")):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            video_info(folder / name)
    with pytest.raises(FileNotFoundError, match="none.mp4"):
        video_info(folder / "none.mp4")


@pytest.mark.parametrize(("known_codec", "message"), [(True, "no size"), (False, "no codec that can be decoded")])
def test_video_without_size_or_known_codec_is_refused(folder, known_codec, message):
    path = sizeless(folder / f"{known_codec}.avi", known_codec=known_codec)
    for read in (video_info, numbers):
        with pytest.raises(ValueError, match=f"{known_codec}.avi: the video stream .*{message}"):
            read(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("turned", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True)])
def test_frames_are_upright(folder, suffix, turned, mirrored):
    path = write_video(folder / f"turned{suffix}", 3, turned=turned, mirrored=mirrored)
    stored = np.zeros((48, 64))
    stored[:, :32], stored[:, 32:] = 20, 10
    shown = np.rot90(stored, turned // 90)  # to the left, as PyAV counts
    shown = shown[:, ::-1] if mirrored[0] else shown
    shown = shown[::-1] if mirrored[1] else shown
    info = video_info(path)
    assert (info.height, info.width) == shown.shape
    first = next(read_frames(path)).image
    assert first.shape == (*shown.shape, 3)
    assert first.flags.c_contiguous
    np.testing.assert_allclose(first, np.repeat(shown[..., None], 3, axis=2), atol=4)


def test_rotation_by_other_angles_is_refused(folder):
    path = write_video(folder / "askew.mp4", 3, turned=30)
    for read in (video_info, numbers):
        with pytest.raises(ValueError, match=r"askew.mp4, frame 0 .*display matrix \(0.866, .*expected quarter turns"):
            read(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_frames_hidden_by_an_edit_list_are_left_out(folder, suffix, b_frames):
    whole = write_video(folder / f"whole{b_frames}.mp4", 29, b_frames=b_frames)
    cut_in_front = trimmed(whole, 0.75, folder / f"front{suffix}")
    assert video_info(cut_in_front) == VideoInfo(14, 20.0, 48, 64, hidden=3)  # 12, 13, 14 lie behind a key frame
    frames = list(read_frames(cut_in_front))
    assert [frame_number(frame.image) for frame in frames] == list(range(15, 29))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(14) / 20, atol=1e-6)
    assert numbers(cut_in_front, start_s=0.3, stop_s=0.5) == [21, 22, 23, 24]
    assert numbers(cut_in_front, rate_hz=10) == list(range(15, 29, 2))
    at_both_ends = trimmed(whole, 0.75, folder / f"both{suffix}", hide_behind_s=0.2)
    assert video_info(at_both_ends) == VideoInfo(10, 20.0, 48, 64, hidden=7)
    assert numbers(at_both_ends) == list(range(15, 25))


def test_matroska_copy_shows_all_its_frames(folder):
    copy = trimmed(write_video(folder / "for_copy.mp4", 29, b_frames=0), 0.75, folder / "copy.mkv")
    assert video_info(copy) == VideoInfo(17, 20.0, 48, 64)
    assert numbers(copy) == list(range(12, 29))


def test_pictures_beyond_the_memory_bound_are_refused_before_decoding(folder, monkeypatch):
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "1")
    path = write_video(folder / "large.mp4", 2, size=(400, 400))
    for read in (video_info, numbers):
        with pytest.raises(ValueError, match=r"large.mp4: .* to 1,920,000, .*1 MB .*set AGENT_JAX_MAX_READ_MB=2 "):
            read(path)
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "2")
    assert video_info(path).height == 400


def test_header_with_more_frames_than_bytes_is_refused(folder, tmp_path):
    many = with_frame_count(write_video(folder / "few.avi", 4), 2**31 - 9, tmp_path / "many.avi")
    with pytest.raises(ValueError, match="many.avi: .*counts 2,147,483,639 frames, expected at most one for each of"):
        video_info(many)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_varying_rate_is_refused_unless_sampled_evenly(folder, suffix):
    path = write_video(folder / f"varying{suffix}", frames=6, times_ms=[0, 50, 100, 300, 350, 400])
    with pytest.raises(ValueError, match="at 0.300 s: follows the frame at 0.100 s"):
        numbers(path)
    assert numbers(path, rate_hz=10)[:5] == [0, 2, 2, 3, 5]


def test_empty_range_is_refused(fast):
    with pytest.raises(ValueError, match="expected 0 <= start_s < stop_s"):
        numbers(fast, start_s=2.0, stop_s=1.0)
