"""Samples stretches of a video or DICOM cine at a rate, and cuts them into clips of a window's length.

    stretch at 4 Hz   0 1 2 3 4 5 6 7 8 9     window 4  ->  clips [0 1 2 3] [4 5 6 7]; 8 and 9 are not used

An incomplete clip is dropped: repeated images would misrepresent the video.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent_jax.data.bad_data import BadDataError, bad_data
from agent_jax.data.prepare.sources.video.decode import VideoInfo, video_info
from agent_jax.data.prepare.sources.video.dicom import dicom_info, is_dicom, read_dicom
from agent_jax.data.prepare.sources.video.videos import checked_frames


@dataclasses.dataclass(frozen=True)
class Cine:
    """A video or DICOM cine with its header."""

    path: Path
    info: VideoInfo
    is_dicom: bool

    @property
    def length_s(self) -> float:
        """Duration in seconds."""
        return self.info.frames / self.info.rate_hz

    def images(self, start_s: float, stop_s: float, rate_hz: float) -> Iterator[np.ndarray]:
        """uint8 (height, width, 3), with the arguments of `decode.read_frames`.

        Raises:
            BadDataError: one cannot be read.
        """
        if not self.is_dicom:
            return checked_frames(self.path, start_s=start_s, stop_s=stop_s, rate_hz=rate_hz)
        first, last = start_s * self.info.rate_hz, min(stop_s * self.info.rate_hz, self.info.frames)
        if not rate_hz:
            return self._decoded(list(range(math.ceil(first - 1e-6), math.ceil(last - 1e-6))))
        every = self.info.rate_hz / rate_hz
        if every < 0.999:
            raise BadDataError(f"{self.path}: found {self.info.rate_hz:.6g} frames a second, expected at least "
                               f"{rate_hz:g}")
        count = math.ceil((last - first) / every - 1e-6)
        return self._decoded([math.floor(first + k * every + 1e-6) for k in range(count)])  # at or before its time

    def _decoded(self, frames: list[int]) -> Iterator[np.ndarray]:
        with bad_data():
            yield from read_dicom(self.path, frames)


def open_cine(path: Path, dicom_hz: float) -> Cine:
    """Read the header of a video or DICOM file; `dicom_hz` is the rate if a DICOM file states none, 0: unknown.

    Raises:
        BadDataError: the file is missing, cannot be opened, or has no rate.
    """
    with bad_data():
        if not is_dicom(path):
            return Cine(path, video_info(path), is_dicom=False)
        info = dicom_info(path)
    if not info.rate_hz and not dicom_hz:
        raise BadDataError(f"{path}: names no rate; set config.options.dicom_hz")
    return Cine(path, dataclasses.replace(info, rate_hz=info.rate_hz or dicom_hz), is_dicom=True)


def whole_clips(images: Iterator[np.ndarray], window: int, *, first_only: bool = False) -> Iterator[np.ndarray]:
    """The images of whole clips of `window`, concatenated; the remainder is dropped."""
    while len(clip := list(itertools.islice(images, window))) == window:
        yield from clip
        if first_only:
            return
