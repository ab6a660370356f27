"""A row: the instruction, then images, states and actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent_jax.convert.exported.domain import Domain

Row = tuple[list[Any], np.ndarray]  # lists of ids and visual tokens (n, D), in order; the positions (S,) of all slots


@dataclass
class Step:
    """One time step."""

    images: Sequence[np.ndarray]  # uint8 (size, size, 3), one a camera
    state_ids: Sequence[int] = ()
    action_ids: Sequence[int] = ()


def lay_out_row(domain: Domain, text: Sequence[int], visual: Sequence[Sequence[Any]], ids: Sequence[Sequence[int]]
                ) -> Row:
    """The row of a text, and of each step's visual tokens by camera and its ids."""
    pieces: list[Any] = [list(text)]
    for tokens, of_step in zip(visual, ids, strict=True):
        pieces += [*tokens, *([list(of_step)] if of_step else [])]
    position_S = np.arange(sum(map(len, pieces)))
    if domain.first_position:
        position_S[len(text) :] += domain.first_position - len(text)
    return pieces, position_S


def stack_frames(domain: Domain, clips: Sequence[Sequence[Sequence[np.ndarray]]]) -> tuple[np.ndarray, np.ndarray]:
    """frames_BFHWC and clip_BF (-1: padding) of steps by camera."""
    frames = [np.stack([image for step in clip for image in step]) for clip in clips]
    frames_BFHWC = np.zeros((len(clips), max(map(len, frames)), *frames[0].shape[1:]), np.uint8)
    clip_BF = np.full(frames_BFHWC.shape[:2], -1)
    for i, (images, clip) in enumerate(zip(frames, clips, strict=True)):
        frames_BFHWC[i, : len(images)] = images
        clip_BF[i, : len(images)] = np.arange(len(images)) % (len(clip[0]) if domain.video else len(images))
    return frames_BFHWC, clip_BF
