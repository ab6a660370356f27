"""Decodes the frames of a video file once and in order, by PyAV (FFmpeg).

    file --demux--> packets --decode, one thread--> frames --[start_s, stop_s)--> --rate_hz--> RGB --> Frame

    rate_hz=20 of a 30 Hz video:    frame    0     1     2     3     4     5     6        each sample is the frame shown
                                    sample   0        1       2      3        4           at its time

A video that is cut off or damaged is refused: actions would be paired with wrong frames. Frames are those that a player
shows. Frames hidden by an edit list are left out (a copy that was cut without encoding again begins at the key frame
before the cut), and pictures to be shown turned or mirrored are upright.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from agent_jax.data.limits import MAX_READ_VARIABLE, check_unpacked, max_extra_bytes
from agent_jax.data.prepare.sources.video.display_matrix import Rotation, turn_of
from agent_jax.data.prepare.sources.video.mp4_tables import check_tables

# FFmpeg would also render a text file as pictures of its letters, and a playlist may name other files.
_FORMATS = "mov,avi,matroska,webm,mpeg,mpegts,asf,flv,ogg"
# Memory per pixel during decoding: RGB, and the decoder's own and earlier pictures at 1.5 bytes.
_BYTES_PER_PIXEL = 12


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Number, rate and size of a video's frames, from its header."""

    frames: int  # shown ones
    rate_hz: float
    height: int  # of the upright picture
    width: int
    hidden: int = 0  # frames that the file holds and no player shows


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image of a video."""

    time_s: float  # since the first frame of the file
    image: np.ndarray  # uint8 (height, width, 3), RGB


def video_info(path: str | Path) -> VideoInfo:
    """The header of a video. Decodes the first frame, and counts packets if the header has no number of frames.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not a video, only sound, cut off before its header, or a first frame that cannot be decoded.
    """
    with _Reader(path) as reader:
        shown, hidden = reader.frames or reader.counted()
        rate_hz = reader.rate_hz
    first = next(read_frames(path), None)
    if not shown or first is None:
        raise ValueError(f"{path}: the video has no frames; expected at least one")
    height, width, _ = first.image.shape
    return VideoInfo(shown, rate_hz, height, width, hidden)


def read_frames(path: str | Path, *, start_s: float = 0.0, stop_s: float = math.inf,
                rate_hz: float = 0.0, even: bool = True) -> Iterator[Frame]:
    """The frames of [start_s, stop_s), in order; holds one at a time.

    Args:
        path: of the file.
        start_s: seconds since the first frame. Reading begins at the last key frame before it.
        stop_s: likewise; exclusive.
        rate_hz: frames per second, at most the video's. Sample k is the last frame at or before start_s + k / rate_hz.
            0: every frame, at an even rate.
        even: False: with `rate_hz` 0, frames at an uneven rate are accepted.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an error of `video_info`; a damaged frame; a rotation that is not a multiple of 90 degrees, or
            changes; an end before that of the header; an uneven rate where `rate_hz` is 0; a `rate_hz` above the
            video's. Names file, frame and time.
    """
    if not 0 <= start_s < stop_s:
        raise ValueError(f"{path}: asked for start_s={start_s} to stop_s={stop_s}, expected 0 <= start_s < stop_s")
    with _Reader(path) as reader:
        if rate_hz > reader.rate_hz * 1.001:  # 29.97 is accepted as 30
            raise ValueError(f"{path}: found {reader.rate_hz:.6g} frames a second, expected at least rate_hz={rate_hz};"
                             " frames are not repeated")
        frames = reader.decoded(start_s)
        if rate_hz:
            chosen = _sampled(frames, start_s, stop_s, rate_hz, reader)
        else:
            chosen = _all(frames, start_s, stop_s, reader, even=even)
        for time_s, frame in chosen:
            yield Frame(time_s, reader.image(frame, time_s))


class _Reader:
    """An open file and its one video stream."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: not found; expected a video file")
        if not self.path.stat().st_size:
            raise ValueError(f"{path}: found 0 bytes, expected a video")
        check_tables(self.path)
        self.rotation: Rotation | None = None  # of the first frame that was decoded
        self._max_pixels = (self.path.stat().st_size + max_extra_bytes()) // _BYTES_PER_PIXEL
        # Bounds a size that only the pictures state. Twice, since FFmpeg adds a border to them.
        limit = {"max_pixels": str(min(2 * self._max_pixels, 2**31 - 1))}
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, **limit}
        try:
            self.container = av.open(f"file:{self.path}", options=options, metadata_errors="replace")
        except FFmpegError as error:
            raise ValueError(f"{path}: cannot be opened as a video ({error.strerror}); expected a whole mp4, avi, mkv, "
                             "webm, mpeg, wmv, flv or ogg file. An mp4 that was cut off while it was written or copied "
                             "lacks its index: copy it again, or leave it out") from error
        try:
            self.stream = self._video_stream(limit)
        except BaseException:
            self.container.close()
            raise

    def _video_stream(self, limit: dict[str, str]) -> av.VideoStream:
        cover = Disposition.attached_pic  # as in music files
        streams = [stream for stream in self.container.streams.video if not stream.disposition & cover]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in self.container.streams})) or "nothing"
            raise ValueError(f"{self.path}: holds {kinds}, expected a video stream")
        stream = streams[0]
        if not stream.average_rate or not stream.time_base or stream.codec_context is None:
            raise ValueError(f"{self.path}: the video stream states no rate or unit of time, or no codec that can be "
                             "decoded; the file is damaged or empty")
        size = self.path.stat().st_size
        check_unpacked(stream.width * stream.height * _BYTES_PER_PIXEL, size, f"{self.path}: pictures of "
                       f"{stream.height} x {stream.width}")
        if not stream.width or not stream.height:  # FFmpeg drops a size beyond max_pixels
            raise ValueError(f"{self.path}: the video stream states no size, or pictures of more than "
                             f"{self._max_pixels:,} pixels, the bound for their memory; the file is damaged or empty, "
                             f"or set {MAX_READ_VARIABLE} in the environment to raise the bound")
        stream.thread_type = "NONE"  # recordings are divided among processes; more threads in each are slower
        stream.codec_context.thread_count = 1
        stream.codec_context.options = limit
        return stream

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @property
    def rate_hz(self) -> float:
        """Frames a second, on average."""
        assert self.stream.average_rate is not None
        return float(self.stream.average_rate)

    @functools.cached_property
    def frames(self) -> tuple[int, int] | None:
        """(Shown frames, hidden ones) by the header; None: it does not state them."""
        coded = self.stream.frames
        if coded > self.path.stat().st_size:
            raise ValueError(f"{self.path}: its header counts {coded:,} frames, expected at most one for each of its "
                             f"{self.path.stat().st_size:,} bytes; the file is damaged")
        if not coded or "mov" not in self.container.format.name.split(","):
            return (coded, 0) if coded else None
        # An mp4's index has the edit list applied; the header's own number includes hidden frames.
        shown = sum(not entry.is_discard for entry in self.stream.index_entries)
        return (shown, max(coded - shown, 0)) if shown else None

    def counted(self) -> tuple[int, int]:
        """Likewise, by its packets; afterwards nothing can be decoded."""
        discarded = [packet.is_discard for packet in self.packets() if packet.size]
        return len(discarded) - sum(discarded), sum(discarded)

    @property
    def tolerance_s(self) -> float:
        """The rounding error of a frame's time: a container counts in ticks, Matroska in ticks of 1 ms."""
        tick = float(self.stream.time_base or 0)
        return min(0.5 * tick + 1e-6, 0.1 / self.rate_hz)

    def packets(self) -> Iterator[Any]:
        """The encoded packets of the stream, and at the end an empty one, which flushes the decoder."""
        try:
            yield from self.container.demux(self.stream)
        except FFmpegError as error:
            raise ValueError(f"{self.path}: cannot be read further ({error.strerror}); the file is damaged or cut "
                             "off") from error

    def decoded(self, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """(seconds since the first frame, frame), from the last key frame before `start_s`."""
        zero = self.stream.start_time or 0
        base = self.stream.time_base
        assert base is not None
        if start_s > 0:
            try:
                self.container.seek(zero + int(start_s / base), stream=self.stream)
            except (FFmpegError, OverflowError) as error:
                raise ValueError(f"{self.path}: cannot be read from {start_s} s on ({error}); the file has no index, "
                                 "or is damaged") from error
        count, time_s = 0, 0.0
        for packet in self.packets():
            place = f"frame {count} after {time_s:.3f} s" if start_s == 0 else f"after {max(time_s, start_s):.3f} s"
            try:
                frames = packet.decode()
            except FFmpegError as error:
                raise ValueError(f"{self.path}, {place}: cannot be decoded ({error.strerror}); the video is damaged or "
                                 "cut off") from error
            for frame in frames:
                if frame.pts is None:
                    raise ValueError(f"{self.path}, {place}: has no time stamp; write the video again, as with ffmpeg "
                                     "-i IN -c:v libx264 OUT.mp4")
                time_s = float((frame.pts - zero) * base)
                self._check_frame(frame, place)
                yield time_s, frame
                count += 1
        if start_s == 0 and not count:
            raise ValueError(f"{self.path}: the video has no frames; expected at least one")
        if max(time_s, start_s) + 1.5 / self.rate_hz < self._end_s():
            frames = self.frames[0] if self.frames else "more"
            raise ValueError(f"{self.path}: ends after {time_s:.3f} s, expected {frames} frames until "
                             f"{self._end_s():.3f} s as its header says; the file is cut off")

    def _end_s(self) -> float:
        """A lower bound of the video's duration in seconds; 0: the header does not state it."""
        frames, whole = self.frames[0] if self.frames else 0, self.container.duration
        ends = [frames / self.rate_hz] if frames else []
        if whole and (frames or len(self.container.streams) == 1):  # otherwise it may be the duration of the sound
            ends.append(whole / av.time_base)
        return min(ends, default=0.0)

    def _check_frame(self, frame: av.VideoFrame, place: str) -> None:
        if frame.is_corrupt:
            raise ValueError(f"{self.path}, {place}: is damaged; copy the video again or leave it out")
        matrix = frame.side_data.get("DISPLAYMATRIX")
        try:
            rotation = turn_of(bytes(matrix)) if matrix is not None else Rotation()
        except ValueError as error:
            raise ValueError(f"{self.path}, {place}: {error}; write it upright with ffmpeg -i IN -c:v libx264 OUT.mp4, "
                             "which turns the pixels") from error
        if rotation != (self.rotation or rotation):
            raise ValueError(f"{self.path}, {place}: has another rotation than the frames before it; write it upright "
                             "with ffmpeg -i IN -c:v libx264 OUT.mp4, which turns the pixels")
        self.rotation = rotation
        if (frame.height, frame.width) != (self.stream.height, self.stream.width):
            raise ValueError(f"{self.path}, {place}: has {frame.height}x{frame.width} pixels, expected "
                             f"{self.stream.height}x{self.stream.width} throughout")

    def image(self, frame: av.VideoFrame, time_s: float) -> np.ndarray:
        """The upright picture of a frame, uint8 (height, width, 3)."""
        assert self.rotation is not None
        try:
            return self.rotation.upright(frame.to_ndarray(format="rgb24"))
        except (FFmpegError, ValueError, RuntimeError) as error:
            raise ValueError(f"{self.path}, at {time_s:.3f} s: cannot be converted to RGB ({error}); the video is "
                             "damaged, or FFmpeg cannot convert its pixel format") from error


_Timed = Iterator[tuple[float, av.VideoFrame]]


def _all(frames: _Timed, start_s: float, stop_s: float, reader: _Reader, *, even: bool) -> _Timed:
    """Every frame of the range; with `even`, an uneven rate is an error."""
    before = None
    for time_s, frame in frames:
        if time_s >= stop_s - reader.tolerance_s:
            return
        if even and before is not None and abs((time_s - before) * reader.rate_hz - 1) > 0.5:
            raise ValueError(f"{reader.path}, at {time_s:.3f} s: follows the frame at {before:.3f} s, expected steps "
                             f"of {1 / reader.rate_hz:.3f} s; frames are missing or the rate varies. Give rate_hz to "
                             "sample it evenly")
        before = time_s
        if time_s >= start_s - reader.tolerance_s:
            yield time_s, frame


def _sampled(frames: _Timed, start_s: float, stop_s: float, rate_hz: float, reader: _Reader) -> _Timed:
    """The last frame at or before each of the times start_s + k / rate_hz."""
    tolerance_s = reader.tolerance_s
    shown: tuple[float, av.VideoFrame] | None = None
    k = 0
    for time_s, frame in frames:
        while shown is not None and start_s + k / rate_hz < min(time_s - tolerance_s, stop_s - tolerance_s):
            yield shown
            k += 1
        if time_s >= stop_s - tolerance_s:
            return
        shown = time_s, frame
    end_s = min(stop_s, shown[0] + 1 / reader.rate_hz) if shown else 0.0  # the last frame lasts as long as the others
    while shown is not None and start_s + k / rate_hz < end_s - tolerance_s:
        yield shown
        k += 1
