"""Writes clips in the form of Microsoft's public sample of Bleeding Edge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from videos import grey, write_video

from agent_jax.actions.vocabulary import BLEEDING_EDGE_BUTTONS

COLUMNS: Mapping[str, int] = {name: 11 - i for i, name in enumerate(BLEEDING_EDGE_BUTTONS)}  # column 0 has no name


def actions(frames: int) -> np.ndarray:
    """float32 (frames, 16): button `t % 12` is down in row t; left stick forward; right stick neutral, then right."""
    rows = np.zeros((frames, 16), np.float32)
    rows[np.arange(frames), np.arange(frames) % 12] = 1
    rows[:, 12:] = (6, 10, 5, 5)
    rows[frames // 2 :, 14] = 10
    return rows


def write_clip(folder: Path, name: str = "FB0A_12Movie.pb_step-4_tick-62", frames: int = 12, *,
               size: tuple[int, int] = (48, 64), stored: bool = True, last: bool = False,
               **changed: np.ndarray) -> Path:
    """A pair; the number of a frame is its grey level. Returns the npz file.

    Args:
        folder: made if it is missing.
        name: of the clip.
        frames: of the video and of both arrays.
        size: height and width.
        stored: whether the npz file has the frames.
        last: whether the colours are the last axis of the stored frames.
        changed: arrays of the npz file in place of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / f"{name}_video.mp4", frames, 10, size)
    arrays = {"actions": actions(frames), "states": np.zeros((frames, 56), np.float32)}
    if stored:
        images = np.stack([np.full((3, *size), grey(number), np.uint8) for number in range(frames)])
        arrays["images"] = np.moveaxis(images, 1, -1) if last else images
    np.savez(folder / f"{name}_data.npz", **{**arrays, **changed})
    return folder / f"{name}_data.npz"
