"""A rollout as an animated GIF: the instruction above, what the agent sees, the decoded action below.

    go to the red ball
    [ enlarged frame ]      green or red frame around the last picture
    step 3 of 5: forward

Pillow draws it: no window, no video codec.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE = 336  # pixels of the enlarged frame, at least
_MARGIN, _FONT_SIZE, _LINE = 8, 17, 22
_INK, _PAPER, _GOOD, _BAD = (25, 25, 25), (250, 250, 250), (20, 140, 60), (190, 40, 40)
_STEP_MS, _LAST_MS = 500, 2000


def write_gif(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    instruction: str,
    actions: Sequence[str],
    *,
    success: bool,
    title: str = "",
) -> None:
    """Write one episode.

    Args:
        path: of the GIF.
        frames: uint8 (steps + 1, height, width, 3): before each action, and after the last.
        instruction: what the agent was told.
        actions: a word for each step.
        success: whether the episode ended well.
        title: a line above the instruction, e.g. level and policy.

    Raises:
        ValueError: the frames are not of this kind, or their number is not that of the actions and one.
    """
    pictures = draw_rollout(frames, instruction, actions, success=success, title=title)
    durations = [_STEP_MS] * len(actions) + [_LAST_MS]
    # One palette for all pictures: with one each, flat colours would flicker.
    drawn = [np.asarray(picture).reshape(-1, 1, 3) for picture in (pictures[0], pictures[-1])]
    palette = Image.fromarray(np.concatenate([*drawn, np.asarray(frames).reshape(-1, 1, 3)])).quantize(256)
    flat = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    flat[0].save(Path(path), "gif", save_all=True, append_images=flat[1:], duration=durations, loop=0)


def draw_rollout(
    frames: np.ndarray,
    instruction: str,
    actions: Sequence[str],
    *,
    success: bool,
    title: str = "",
) -> list[Image.Image]:
    """The pictures of `write_gif`, one a frame, all of one size."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) != len(actions) + 1:
        raise ValueError(
            f"frames: found {frames.dtype} of shape {frames.shape} for {len(actions)} actions, expected uint8 "
            f"({len(actions) + 1}, height, width, 3): one before each action and one after the last"
        )
    scale = max(1, -(-_SIDE // max(frames.shape[1:3])))
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    font = ImageFont.load_default(_FONT_SIZE)
    head = ([title] if title else []) + _wrapped(instruction, width, font)
    top = _MARGIN + _LINE * len(head) + _MARGIN
    pictures = []
    for step, frame in enumerate(frames):
        picture = Image.new("RGB", (width + 2 * _MARGIN, top + height + _MARGIN + _LINE + _MARGIN), _PAPER)
        draw = ImageDraw.Draw(picture)
        for line, text in enumerate(head):
            draw.text((_MARGIN, _MARGIN + _LINE * line), text, (120, 120, 120) if title and not line else _INK, font)
        last = step == len(actions)
        colour = (_GOOD if success else _BAD) if last else _INK
        if last:
            around = (_MARGIN - 5, top - 5, _MARGIN + width + 4, top + height + 4)
            draw.rectangle(around, fill=colour)
            steps = f"{len(actions)} step{'s' * (len(actions) != 1)}"
            below = f"succeeded after {steps}" if success else f"failed after {steps}"
        else:
            below = f"step {step + 1} of {len(actions)}: {actions[step]}"
        enlarged = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(enlarged, (_MARGIN, top))
        draw.text((_MARGIN, top + height + _MARGIN), below, colour, font)
        pictures.append(picture)
    return pictures


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
