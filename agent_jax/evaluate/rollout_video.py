"""A rollout as a video: the instruction above, what the agent sees, the decoded action below.

    go to the red ball
    [ enlarged frame ]      green or red frame around the last picture
    step 3 of 5: forward

Pillow draws it, without a window; the file is an animated GIF, or an MP4 where PyAV is installed.
"""

from __future__ import annotations

import dataclasses
import fractions
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agent_jax.runtime.extras import install

_SIDE = 336  # pixels of the enlarged frame, at least
_MARGIN, _FONT_SIZE, _LINE = 8, 17, 22
_INK, _PALE, _PAPER = (25, 25, 25), (120, 120, 120), (250, 250, 250)
_GOOD, _BAD = (20, 140, 60), (190, 40, 40)
_STEP_MS, _LAST_MS = 500, 2000
_LONG = 60  # steps from which on an episode is shown faster, all of it in about 30 s

Format = Literal["gif", "mp4"]


class RecordedRollout(Protocol):
    """An episode to look at, e.g. `evaluate.rollouts.Recording`."""

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def policy(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def instructions(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def frames(self) -> np.ndarray: ...  # noqa: D102
    @property
    def actions(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def success(self) -> bool: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What a video shows."""

    frames: np.ndarray  # uint8 (steps + 1, height, width, 3): before each action, and after the last
    instructions: Sequence[str]  # what the agent was told, one a frame
    actions: Sequence[str]  # a word for each step
    success: bool  # the episode ended well
    title: str = ""  # a line above the instruction, e.g. level and policy

    def __post_init__(self) -> None:
        frames, steps = self.frames, len(self.actions)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) != steps + 1:
            raise ValueError(
                f"frames: found {frames.dtype} of shape {frames.shape} for {steps} actions, expected uint8 "
                f"({steps + 1}, height, width, 3): one before each action and one after the last"
            )
        if len(self.instructions) != len(frames):
            raise ValueError(f"instructions: found {len(self.instructions)} for {len(frames)} frames, expected one of "
                             "each")

    @property
    def step_ms(self) -> int:
        """Milliseconds that a picture stays."""
        steps = len(self.actions)
        return _STEP_MS if steps < _LONG else max(20, 30_000 // steps // 10 * 10)


def usual_format() -> Format:
    """What `write_recording` writes: MP4, a tenth of the size, where PyAV is installed."""
    return "mp4" if importlib.util.find_spec("av") else "gif"


def check_format(kind: Format) -> None:
    """Refuse a format that cannot be written here.

    Raises:
        ModuleNotFoundError: an MP4, and PyAV is not installed; says how to install it.
    """
    if kind == "mp4" and usual_format() != "mp4":
        raise ModuleNotFoundError(f"an MP4 needs av, which is not installed: {install('data')}, or write a GIF",
                                  name="av")


def write_recording(directory: str | os.PathLike[str], recording: RecordedRollout, *, kind: Format = "gif",
                    with_seed: bool = False) -> Path:
    """Write TASK-POLICY-OUTCOME.gif, or TASK-POLICY-SEED-OUTCOME.mp4, into a directory, which is made.

    Args:
        directory: of the file.
        recording: the episode.
        kind: of the file.
        with_seed: whether the seed is part of the name, for several episodes of a task.

    Returns:
        The path; OUTCOME is "success" or "failure".
    """
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    seed = f"-{recording.seed}" if with_seed else ""
    outcome = "success" if recording.success else "failure"
    path = place / f"{recording.task.replace('/', '_')}-{recording.policy}{seed}-{outcome}.{kind}"
    write = write_mp4 if kind == "mp4" else write_gif
    title = f"{recording.task}, {recording.policy}, seed {recording.seed}"
    write(path, Rollout(recording.frames, recording.instructions, recording.actions, recording.success, title))
    return path


def write_gif(path: str | os.PathLike[str], rollout: Rollout) -> None:
    """Write an episode as an animated GIF."""
    pictures = list(draw_rollout(rollout))
    durations = [rollout.step_ms] * len(rollout.actions) + [_LAST_MS]
    # One palette for all pictures: with one each, flat colours would flicker.
    drawn = [np.asarray(picture).reshape(-1, 1, 3) for picture in (pictures[0], pictures[-1])]
    palette = Image.fromarray(np.concatenate([*drawn, rollout.frames.reshape(-1, 1, 3)])).quantize(256)
    flat = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    partial = _beside(path)
    flat[0].save(partial, "gif", save_all=True, append_images=flat[1:], duration=durations, loop=0)
    os.replace(partial, path)


def write_mp4(path: str | os.PathLike[str], rollout: Rollout) -> None:
    """Write an episode as H.264 in an MP4.

    Raises:
        ModuleNotFoundError: PyAV is not installed; says how to install it.
    """
    check_format("mp4")
    import av

    step_ms, partial = rollout.step_ms, _beside(path)
    with av.open(str(partial), "w", format="mp4") as container:
        # Typed Any: which class of stream it is depends on the codec's name.
        stream: Any = container.add_stream("libx264", rate=fractions.Fraction(1000, step_ms), options={"crf": "18"})
        stream.pix_fmt = "yuv420p"  # what every player shows
        for number, picture in enumerate(draw_rollout(rollout)):
            if not number:
                stream.width, stream.height = (side + side % 2 for side in picture.size)  # the codec wants even sides
            canvas = Image.new("RGB", (stream.width, stream.height), _PAPER)
            canvas.paste(picture)
            stays = _LAST_MS // step_ms if number == len(rollout.actions) else 1
            for _ in range(stays):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(canvas), format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)


def _beside(path: str | os.PathLike[str]) -> Path:
    """Where a file is written before it has its name."""
    return Path(path).with_name(f".{Path(path).name}.partial")


def draw_rollout(rollout: Rollout) -> Iterator[Image.Image]:
    """The pictures of a video, one a frame, all of one size; drawn as they are asked for, since they may be many."""
    frames, actions = rollout.frames, rollout.actions
    scale = max(1, -(-_SIDE // max(frames.shape[1:3])))
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    font = ImageFont.load_default(_FONT_SIZE)
    title = [rollout.title] if rollout.title else []
    told = {text: title + _wrapped(text, width, font) for text in dict.fromkeys(rollout.instructions)}
    top = _MARGIN + _LINE * max(map(len, told.values())) + _MARGIN
    for step, frame in enumerate(frames):
        picture = Image.new("RGB", (width + 2 * _MARGIN, top + height + _MARGIN + _LINE + _MARGIN), _PAPER)
        draw = ImageDraw.Draw(picture)
        for line, text in enumerate(told[rollout.instructions[step]]):
            draw.text((_MARGIN, _MARGIN + _LINE * line), text, _PALE if title and not line else _INK, font)
        last = step == len(actions)
        colour = (_GOOD if rollout.success else _BAD) if last else _INK
        if last:
            around = (_MARGIN - 5, top - 5, _MARGIN + width + 4, top + height + 4)
            draw.rectangle(around, fill=colour)
            steps = f"{len(actions)} step{'s' * (len(actions) != 1)}"
            below = f"succeeded after {steps}" if rollout.success else f"failed after {steps}"
        else:
            below = f"step {step + 1} of {len(actions)}: {actions[step]}"
        enlarged = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(enlarged, (_MARGIN, top))
        draw.text((_MARGIN, top + height + _MARGIN), below, colour, font)
        yield picture


def _wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines of at most `width` pixels, or of one word."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
