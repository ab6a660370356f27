"""Rows of LeRobot episodes and the frames of their videos: measured times, offsets, and the option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_sets import LENGTHS, LEVEL, STARTS, TOP, rows, table, version_2, version_3, write_table, write_video

from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.source import SourceEpisode

CLOCK = (0.0, 0.094, 0.189, 0.288, 0.408, 0.552)  # 10 Hz with jitter and a late frame, half a frame off
SHIFTED = tuple(5.5 + time_s for time_s in CLOCK)
SLOW = tuple(0.13 * row for row in range(6))  # a frame behind after four
IN_ORDER = "paired in order"


def with_times(path: Path, times_s: Sequence[float], kind: str = "video") -> Path:
    write_table(path / "data/chunk-000/episode_000000.parquet",
                table([0], kind, timestamp=pa.array(times_s, pa.float32())))
    return path


def rows_of(episode: SourceEpisode) -> list[int]:
    """The row that each image belongs to."""
    return [round(float(np.asarray(step.images["rgb"]).mean()) / LEVEL) for step in episode.steps]


def first_episode(path: Path, pairing: str = "auto", **config: float) -> tuple[SourceEpisode, list[int]]:
    """The first episode, and the row that each of its images belongs to."""
    source = open_source("lerobot", path, PrepareConfig(cameras={"rgb": TOP}, options={"pairing": pairing}, **config))  # pyright: ignore[reportArgumentType]
    [episode] = source.read(source.recordings()[0])
    return episode, rows_of(episode)


@pytest.mark.parametrize("times_s", [CLOCK, SHIFTED], ids=["clock", "shifted"])
@pytest.mark.parametrize("frames_s", [(), CLOCK], ids=["even frames", "frames of the clock"])
def test_measured_times_pair_rows_and_frames_in_order(tmp_path: Path, times_s: Sequence[float],
                                                      frames_s: Sequence[float]) -> None:
    path = with_times(version_2(tmp_path / "set"), times_s)
    if frames_s:
        write_video(path / f"videos/chunk-000/{TOP}/episode_000000.mp4", [LEVEL * row for row in rows(0)],
                    times_s=frames_s)
    episode, found = first_episode(path)
    assert found == list(rows(0))
    assert [IN_ORDER in note for note in episode.notes] == [True]


def test_every_second_row_has_the_frame_of_its_position(tmp_path: Path) -> None:
    path = with_times(version_2(tmp_path / "set"), CLOCK)
    source = open_source("lerobot", path, PrepareConfig(cameras={"rgb": TOP}, rate_hz=5.0, resample_actions="last"))
    [episode] = source.read(source.recordings()[0])
    assert rows_of(episode) == [0, 2, 4]


def test_shifted_times_in_a_joined_video_pair_from_the_episode_start(tmp_path: Path) -> None:
    path = version_3(tmp_path / "set")
    file = path / "data/chunk-000/file-001.parquet"
    write_table(file, table([2], "video", timestamp=pa.array([7.0 + time_s for time_s in CLOCK[:5]], pa.float32())))
    source = open_source("lerobot", path, PrepareConfig(cameras={"rgb": TOP}))
    [episode] = source.read(source.recordings()[2])
    assert rows_of(episode) == list(rows(2))
    meta = path / "meta/episodes/chunk-000/file-000.parquet"
    stops = [(start + length + 1) / 10 for start, length in zip(STARTS, LENGTHS, strict=True)]
    write_table(meta, pq.read_table(meta).append_column(f"videos/{TOP}/to_timestamp", pa.array(stops)))
    source = open_source("lerobot", path, PrepareConfig(cameras={"rgb": TOP}))
    with pytest.raises(BadDataError, match=r"file-000\.mp4, episode 2: found 6 frames, but 5 rows"):
        list(next(source.read(source.recordings()[2])).steps)


def test_rows_a_frame_or_more_from_their_frames_require_the_option(tmp_path: Path) -> None:
    path = with_times(version_2(tmp_path / "set"), SLOW)
    with pytest.raises(BadDataError, match=r"episode 0: row 4 is 0\.5200 s after the first, but the frame in its place "
                                           r"0\.4000 s.* config\.options\.pairing=order"):
        first_episode(path)
    episode, found = first_episode(path, "order")
    assert found == list(rows(0))
    assert [IN_ORDER in note for note in episode.notes] == [True]


def test_pairing_by_time_reads_a_part_of_the_video(tmp_path: Path) -> None:
    path = with_times(version_2(tmp_path / "set"), [0.3 + 0.1 * row for row in range(6)])
    write_video(path / f"videos/chunk-000/{TOP}/episode_000000.mp4", [LEVEL * row for row in range(12)])
    with pytest.raises(BadDataError, match=r"found 12 frames, but 6 rows .*config\.options\.pairing=time"):
        first_episode(path)
    with pytest.raises(BadDataError, match="found 12 frames, but 6 rows"):
        first_episode(path, "order")
    episode, found = first_episode(path, "time")
    assert found == [3, 4, 5, 6, 7, 8]
    assert any("at its own time" in note for note in episode.notes)


def test_frames_after_the_last_row_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = version_2(tmp_path / "set")
    write_video(path / f"videos/chunk-000/{TOP}/episode_000000.mp4", [LEVEL * row for row in range(8)])
    assert first_episode(path)[1] == list(rows(0))
    assert main(["prepare", "--source", "lerobot", "--path", str(path), "--out", str(tmp_path / "out"),
                 "--processes", "1", f"--config.cameras.rgb={TOP}", "--config.image_size=8"]) == 0
    assert "1 of 3 recordings: frames of videos after the last row" in capsys.readouterr().out


@pytest.mark.parametrize(("times_s", "message"), [
    ([1.7e9] * 6, r"row 0: is frame 0 at 17.* do not grow .*config\.options\.pairing=order"),
    ([0.05 * row for row in range(6)], r"row 1: is frame 1 at 0\.0500 s, .*at 20 Hz; .*config\.options\.pairing=order"),
])
def test_times_that_fit_no_rate_require_the_option(tmp_path: Path, times_s: list[float],
                                                   message: str) -> None:
    path = with_times(version_2(tmp_path / "set", "image"), times_s, "image")
    source = open_source("lerobot", path, PrepareConfig())
    with pytest.raises(BadDataError, match=message):
        next(source.read(source.recordings()[0]))
    source = open_source("lerobot", path, PrepareConfig(options={"pairing": "order"}))
    assert len(list(next(source.read(source.recordings()[0])).steps)) == 6


def test_images_in_the_table_accept_measured_times(tmp_path: Path) -> None:
    path = with_times(version_2(tmp_path / "set", "image"), SHIFTED, "image")
    source = open_source("lerobot", path, PrepareConfig())
    assert len(list(next(source.read(source.recordings()[0])).steps)) == 6


def test_unknown_pairing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.options\.pairing: found 'oder', .*'order\'"):
        first_episode(version_2(tmp_path / "set"), "oder")
