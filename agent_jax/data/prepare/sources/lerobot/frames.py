"""Pairs the rows of a LeRobot episode with the frames of a video.

    rows at the times of `fps`    t = 0, 0.1, 0.2 ...        the frame at the row's time (from `from_timestamp` on)
    rows at measured times        t = 0, 0.094, 0.189 ...    in order, if there are as many frames as rows and each
                                  t = 5.5, 5.61, 5.69 ...    lies within a frame of its row, counted from the first

`config.options.pairing` overrides this rule: "order" pairs the k-th row with the k-th frame whatever their times,
"time" takes the frame at the row's own time in the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa

from agent_jax.data.bad_data import BadDataError, bad_data
from agent_jax.data.prepare.sources.lerobot.meta import EpisodeEntry, LeRobotMeta
from agent_jax.data.prepare.sources.parquet import column_numbers
from agent_jax.data.prepare.sources.video.decode import read_frames, video_info

Pairing = Literal["auto", "time", "order"]
_TOLERANCE = 0.25  # of a frame interval, the allowed difference between row and frame: joined videos round
_RATE_TOLERANCE = 0.1  # allowed relative difference between the rate of measured times and fps, without a video
_IN_ORDER = ("their times are not those of fps in info.json; rows and frames are paired in order, and fps is taken as "
             "the rate (config.options.pairing)")
_BY_TIME = ("their times are not those of fps in info.json; each row has the frame at its own time "
            "(config.options.pairing)")
_LEFT_OVER = "frames of videos after the last row of the table are left out"


@dataclasses.dataclass(frozen=True)
class RowTimes:
    """The times of an episode's rows, and how they are paired with frames."""

    time_s: np.ndarray  # float64, of each row
    in_order: bool  # paired by position, not by time
    checked: bool  # times are checked: in order, against frames within one frame; by time, against fps
    notes: tuple[str, ...]


def row_times(table: pa.Table, meta: LeRobotMeta, where: str, pairing: Pairing, *, videos: bool) -> RowTimes:
    """The times of an episode's rows; `videos`: the images come from videos.

    Raises:
        BadDataError: rows are not steps 0, 1, 2 ..., or their times do not determine the pairing.
    """
    frame = column_numbers(table, "frame_index", 1, where)[:, 0]
    time_s = column_numbers(table, "timestamp", 1, where)[:, 0].astype(np.float64)
    steps = np.arange(len(table))
    off = np.abs(time_s * meta.rate_hz - steps) > _TOLERANCE
    wrong = np.flatnonzero(frame != steps)

    def describe(row: int) -> str:
        return (f"{where}, row {row}: is frame {frame[row]} at {time_s[row]:.4f} s, expected frame {row} at "
                f"{row / meta.rate_hz:.4f} s, as {meta.file} says fps={meta.rate_hz:g}")

    if len(wrong):
        raise BadDataError(describe(int(wrong[0])))
    if not off.any():
        return RowTimes(time_s, pairing == "order", pairing != "order", ())
    if pairing == "order":
        return RowTimes(time_s, True, False, (_IN_ORDER,))
    if pairing == "time":
        return RowTimes(time_s, False, False, (_BY_TIME,))
    first = int(np.flatnonzero(off)[0])
    if np.any(np.diff(time_s) <= 0):
        raise BadDataError(f"{describe(first)}. Its times do not grow from row to row; if the k-th row is of the k-th "
                           "frame, set config.options.pairing=order")
    length_s = time_s[-1] - time_s[0]
    if not videos and abs(length_s * meta.rate_hz - (len(table) - 1)) > max(_RATE_TOLERANCE * (len(table) - 1), 1):
        raise BadDataError(f"{describe(first)}. Its rows follow each other at {(len(table) - 1) / length_s:.4g} Hz; "
                           "correct fps, or set config.options.pairing=order to take fps as their rate all the same")
    return RowTimes(time_s, True, True, (_IN_ORDER,))


class EpisodeVideo:
    """A camera's video of one episode; the file may hold other episodes as well."""

    def __init__(self, entry: EpisodeEntry, camera: str, meta: LeRobotMeta):
        """Read the header.

        Raises:
            BadDataError: the video is missing, damaged, or of another size than info.json says.
        """
        self._index, self._video = entry.index, entry.videos[camera]
        self._rate_hz, self._meta_file = meta.rate_hz, meta.file
        self._where = f"{self._video.file}, episode {entry.index}"
        with bad_data(f". It holds episode {entry.index}"):
            try:
                self._info = video_info(self._video.file)
            except FileNotFoundError as error:
                raise BadDataError(f"{self._where}: the video of {camera!r} is missing; copy the data again, videos "
                                   "included, or choose another camera by config.cameras") from error
        found, expected = self._info, meta.features.cameras[camera]
        if (found.height, found.width) != (expected.height, expected.width):
            raise BadDataError(f"{self._where}: found {found.height}x{found.width} pixels, expected "
                               f"{expected.height}x{expected.width} as {meta.file} says")

    def notes(self, rows: int) -> tuple[str, ...]:
        """The note on frames beyond the rows, if the file holds this episode only."""
        return (_LEFT_OVER,) if self._video.own and self._info.frames > rows else ()

    def images(self, times: RowTimes, taken: Collection[int]) -> Iterator[np.ndarray]:
        """The images of the rows `taken`, in order.

        Raises:
            BadDataError: a row has no frame, or its frame is uncertain.
        """
        images = self._in_order(times, taken) if times.in_order else self._by_time(times, taken)
        with bad_data(f". It holds episode {self._index}"):
            yield from images

    def _by_time(self, times: RowTimes, taken: Collection[int]) -> Iterator[np.ndarray]:
        if times.checked and abs(self._info.rate_hz / self._rate_hz - 1) > 0.01:
            raise BadDataError(f"{self._where}: found {self._info.rate_hz:g} frames a second, expected "
                               f"fps={self._rate_hz:g} as {self._meta_file} says; if the k-th row is of the k-th "
                               "frame, set config.options.pairing=order")
        slack_s = _TOLERANCE / self._rate_hz
        time_s = times.time_s + self._video.start_s
        frames = read_frames(self._video.file, start_s=max(self._video.start_s - slack_s, 0.0),
                             stop_s=time_s[-1] + 2 * slack_s, even=times.checked)
        for row in taken:
            row_s = float(time_s[row])
            frame = next((frame for frame in frames if frame.time_s >= row_s - slack_s), None)
            if frame is None or frame.time_s > row_s + slack_s:
                found = "the video ends before it" if frame is None else f"the next is at {frame.time_s:.4f} s"
                raise BadDataError(f"{self._where}: no frame at {row_s:.4f} s, where the table has a row; {found}")
            yield frame.image

    def _in_order(self, times: RowTimes, taken: Collection[int]) -> Iterator[np.ndarray]:
        rows, video = len(times.time_s), self._video
        count = self._info.frames if video.own else round((video.stop_s - video.start_s) * self._rate_hz)
        if video.stop_s > 0 and count != rows:
            raise BadDataError(f"{self._where}: found {count} frames, but {rows} rows in the table, which are paired "
                               f"in order, since their times are not those of fps={self._rate_hz:g}; expected as "
                               "many. If each row's time is that of its frame in the file, set "
                               "config.options.pairing=time")
        frames = read_frames(video.file, start_s=max(video.start_s - _TOLERANCE / self._rate_hz, 0.0), even=False)
        first_s = 0.0
        for row in range(rows):
            frame = next(frames, None)
            if frame is None:
                raise BadDataError(f"{self._where}: the video ends before row {row} of the table, expected {rows} "
                                   f"frames from {video.start_s:.4f} s on")
            first_s = frame.time_s if row == 0 else first_s
            row_s, frame_s = float(times.time_s[row] - times.time_s[0]), frame.time_s - first_s
            if times.checked and abs(row_s - frame_s) >= 1 / self._rate_hz:
                raise BadDataError(f"{self._where}: row {row} is {row_s:.4f} s after the first, but the frame in its "
                                   f"place {frame_s:.4f} s, a frame or more apart; if the k-th row is of the k-th "
                                   "frame all the same, set config.options.pairing=order")
            if row in taken:
                yield frame.image
