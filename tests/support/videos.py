"""Writes small videos with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {".avi": "mpeg4", ".mp4": "libx264", ".mkv": "libx264", ".webm": "vp9"}


def grey(number: int) -> int:
    """Grey value of frame `number`; distinct after any compression."""
    return 20 + 7 * (number % 30)


def frame_number(image: np.ndarray) -> int:
    """The number of a frame (of 30), from its left half."""
    return round((float(image[:, : image.shape[1] // 2].mean()) - 20) / 7)


def write_video(path: Path, frames: int = 30, rate_hz: int = 20, size: tuple[int, int] = (48, 64), *, turned: int = 0,
                mirrored: tuple[bool, bool] = (False, False), b_frames: int | None = None,
                times_ms: Sequence[int] | None = None, options: Mapping[str, str] | None = None) -> Path:
    """Frames whose left half is `grey(number)` and whose right half is half as bright.

    Args:
        path: the suffix says the container and codec.
        frames: how many.
        rate_hz: a second.
        size: height and width.
        turned: degrees to the left, to be shown turned by.
        mirrored: left and right, up and down, after that.
        b_frames: how many in a row, of libx264, whose key frames are then every 12th; None: as it decides.
        times_ms: of the frames, where they do not follow each other at the rate.
        options: of the container.
    """
    with av.open(str(path), "w", options=dict(options or {})) as container:
        stream = container.add_stream(CODECS[path.suffix], rate=rate_hz)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 12, 4_000_000
        if b_frames is not None:
            stream.codec_context.options = {"bf": f"{b_frames}", "sc_threshold": "0"}
        if turned or any(mirrored):
            stream.set_display_rotation(turned, *mirrored)
        for number in range(frames):
            image = np.full((*size, 3), grey(number), np.uint8)
            image[:, size[1] // 2 :] //= 2
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """Write a file with sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def with_frame_count(path: Path, frames: int, to: Path) -> Path:
    """A copy of an avi whose header counts other frames."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"strh") + 8 + 32, frames)  # dwLength
    to.write_bytes(content)
    return to


def sizeless(to: Path, *, known_codec: bool) -> Path:
    """An avi of 0 x 0 pixels, or of a codec that no decoder knows."""
    content = bytearray(write_video(to, 4).read_bytes())
    place = content.index(b"strf") + 8
    if known_codec:
        struct.pack_into("<ii", content, place + 4, 0, 0)  # biWidth, biHeight
        struct.pack_into("<I", content, place + 16, 0)  # biCompression: none, which takes the size from here alone
    else:
        content[place + 16 : place + 20] = b"!?!?"
    to.write_bytes(content)
    return to


def cut(path: Path, share: float, to: Path) -> Path:
    """The first part of a file."""
    content = path.read_bytes()
    to.write_bytes(content[: int(len(content) * share)])
    return to


def trimmed(path: Path, start_s: float, to: Path, *, hide_behind_s: float = 0.0) -> Path:
    """A copy that is cut without encoding it again, as `ffmpeg -ss START_S -i PATH -c copy TO` makes it.

    An mp4 then begins at the key frame before the cut, and an edit list hides what comes before the cut.

    Args:
        path: of an mp4.
        start_s: where the copy begins.
        to: the copy; the suffix says the container.
        hide_behind_s: seconds at the end that the edit list hides too.
    """
    with av.open(str(path)) as whole, av.open(str(to), "w") as copy:
        stream = whole.streams.video[0]
        assert stream.time_base is not None
        start = round(start_s / stream.time_base)
        target = copy.add_stream_from_template(stream)
        whole.seek(start, stream=stream)
        for packet in whole.demux(stream):
            if packet.size:
                assert packet.pts is not None
                assert packet.dts is not None
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, target
                copy.mux(packet)
    if hide_behind_s:
        content = bytearray(to.read_bytes())
        place = content.index(b"elst") + 12  # after its name, version and number of entries
        [duration_ms] = struct.unpack_from(">I", content, place)  # FFmpeg writes a movie's times in milliseconds
        struct.pack_into(">I", content, place, duration_ms - round(1000 * hide_behind_s))
        to.write_bytes(content)
    return to
