"""Shared parts of the sources of videos: a recording's footage, the name of its camera, and its errors.

    NAME.mp4                                ->  Footage(path, VideoInfo)          images: uint8 arrays
    NAME/frame_0.png, NAME/frame_1.png ...  ->  Footage(path, VideoInfo, files)   images: the files' bytes

Opening a video reads the rate, number and size of its frames; the frames are decoded as the images are read.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from agent_jax.data.bad_data import BadDataError, bad_data
from agent_jax.data.image_files import read_header
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.source import first_readable
from agent_jax.data.prepare.sources.video.decode import VideoInfo, read_frames, video_info

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".mpg", ".mpeg")
_IMAGES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Footage:
    """The images of a recording, in a video or in a folder of files."""

    path: Path
    info: VideoInfo
    files: tuple[Path, ...] = ()  # of a folder, in order

    def images(self) -> Iterator[bytes | np.ndarray]:
        """Every image in order.

        Raises:
            BadDataError: one cannot be read, or, at the end, their number is not `info.frames`.
        """
        if self.files:
            return (file.read_bytes() for file in self.files)
        return self._decoded()

    def _decoded(self) -> Iterator[np.ndarray]:
        count = 0
        for image in checked_frames(self.path):
            yield image
            count += 1
        if count != self.info.frames:
            raise BadDataError(f"{self.path}: shows {count} frames, expected {self.info.frames} as its header counts "
                               "them; actions cannot be paired with them. Encode the video again by ffmpeg -i IN "
                               "-c:v libx264 OUT.mp4, and check that it has one frame for each action")

    @property
    def expected(self) -> str:
        """The expected number of rows or lines, for messages."""
        shown, coded = self.info.frames, self.info.frames + self.info.hidden
        text = f"expected {shown}, one for each frame of {self.path}"
        if not self.info.hidden:
            return text
        return (f"{text} that a player shows. The file holds {coded} frames; an edit list hides {self.info.hidden}, as "
                "after a cut without encoding again. Remove the rows of hidden frames, usually the first ones, or "
                "leave the recording out")


def open_footage(path: Path, frames_hz: float = 0.0) -> Footage:
    """A video, or a folder of png or jpg files taken at `frames_hz` and ordered by the numbers in their names.

    Raises:
        BadDataError: it cannot be opened, or is a folder while `frames_hz` is 0; a number is missing in a folder.
    """
    if not path.is_dir():
        with bad_data():
            return Footage(path, video_info(path))
    if frames_hz <= 0:
        raise BadDataError(f"{path}: is a folder of frames, which has no rate; set config.options.frames_hz")
    files = sorted((file for file in path.iterdir() if file.suffix.lower() in _IMAGES), key=_number)
    for before, after in itertools.pairwise(files):
        if _number(after) != _number(before) + 1:
            raise BadDataError(f"{path}: found {after.name} after {before.name}, expected frame {_number(before) + 1}")
    try:
        height, width = read_header(files[0].read_bytes()).size
    except (ValueError, OSError) as error:
        raise BadDataError(f"{files[0]}: cannot be read as an image ({error})") from error
    return Footage(path, VideoInfo(len(files), frames_hz, height, width), tuple(files))


def is_footage(path: Path) -> bool:
    """Whether the path has a video's suffix, or is a folder with images."""
    if path.is_dir():
        return any(file.suffix.lower() in _IMAGES for file in path.iterdir())
    return path.suffix.lower() in VIDEOS


def _number(file: Path) -> int:
    """The last number in a frame's name."""
    numbers = re.findall(r"\d+", file.stem)
    if not numbers:
        raise BadDataError(f"{file}: has no number in its name, expected that of the frame")
    return int(numbers[-1])


def camera_name(config: PrepareConfig) -> str:
    """The name under which the only camera is stored.

    Raises:
        ValueError: `config.cameras` names several.
    """
    if len(config.cameras) > 1:
        raise ValueError(f"config.cameras: found {', '.join(config.cameras)}, expected one: a recording is one video")
    return next(iter(config.cameras), "rgb")


def first_info(paths: Iterable[Path], frames_hz: float = 0.0) -> VideoInfo:
    """The header of the first video or folder that can be opened; the others raise their errors when they are read.

    Raises:
        BadDataError: none can be opened; gives the reason for the first.
    """
    return first_readable(paths, lambda path: open_footage(path, frames_hz).info,
                          "found no video, expected at least one")


def checked_rate(path: Path, found_hz: float, expected_hz: float) -> None:
    """Refuse footage whose rate differs by more than 1%.

    Raises:
        BadDataError: names the file and both rates.
    """
    if not math.isclose(found_hz, expected_hz, rel_tol=0.01):
        raise BadDataError(f"{path}: found {found_hz:.6g} frames a second, expected {expected_hz:g}")


def checked_frames(video: Path, *, start_s: float = 0.0, stop_s: float = math.inf,
                   rate_hz: float = 0.0) -> Iterator[np.ndarray]:
    """The images of `decode.read_frames`; raises BadDataError."""
    with bad_data():
        for frame in read_frames(video, start_s=start_s, stop_s=stop_s, rate_hz=rate_hz):
            yield frame.image
