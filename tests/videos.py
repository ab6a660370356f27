"""Small videos that tests write with PyAV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {".avi": "mpeg4", ".mp4": "libx264", ".mkv": "libx264", ".webm": "vp9"}


def grey(number: int) -> int:
    """Grey value of frame `number`; told apart after any compression."""
    return 20 + 7 * (number % 30)


def frame_number(image: np.ndarray) -> int:
    """Which of 30 frames it is, by its left half."""
    return round((float(image[:, : image.shape[1] // 2].mean()) - 20) / 7)


def write_video(path: Path, frames: int = 30, rate_hz: int = 20, size: tuple[int, int] = (48, 64), *, turned: int = 0,
                times_ms: Sequence[int] | None = None, options: Mapping[str, str] | None = None) -> Path:
    """Frames whose left half is `grey(number)` and whose right half is half as bright.

    Args:
        path: the suffix says the container and codec.
        frames: how many.
        rate_hz: a second.
        size: height and width.
        turned: degrees to be shown turned by.
        times_ms: of the frames, where they do not follow each other at the rate.
        options: of the container.
    """
    with av.open(str(path), "w", options=dict(options or {})) as container:
        stream = container.add_stream(CODECS[path.suffix], rate=rate_hz)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 12, 4_000_000
        if turned:
            stream.set_display_rotation(turned)
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
    """A file with sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, share: float, to: Path) -> Path:
    """The first part of a file."""
    content = path.read_bytes()
    to.write_bytes(content[: int(len(content) * share)])
    return to
