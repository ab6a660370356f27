"""How many images, slots and targets of a row its windows take: the one formula for planning and layout."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np

Count = Any  # int, or an int64 array with an element for each window


@dataclasses.dataclass(frozen=True)
class RowUsage:
    """Images, slots and targets that one window takes of a row, or several together."""

    frames: Count
    slots: Count
    targets: Count

    @classmethod
    def of(cls, visual_tokens: int, *, text: Count, frames: Count, states: Count, actions: Count, answers: Count,
           shared_cls: Count = 0, windows: int = 1, prompt: bool) -> Self:
        """What windows with these numbers of images and tokens take.

        Args:
            visual_tokens: V, visual tokens of an image.
            text: tokens of the instructions, including the </s> of each.
            frames: images.
            states: tokens of all states.
            actions: tokens of all actions.
            answers: tokens of the answers.
            shared_cls: images without a CLS token of their own, because a clip has only one.
            windows: number of windows.
            prompt: the text is an input only.
        """
        predicted_text = 0 if prompt else text - windows  # the </s> that opens each window is not predicted
        return cls(frames, text + frames * visual_tokens - shared_cls + states + actions + answers,
                   predicted_text + actions + answers)

    def as_array(self) -> np.ndarray:
        """int64 (..., 3): images, slots and targets."""
        return np.stack([self.frames, self.slots, self.targets], axis=-1)
