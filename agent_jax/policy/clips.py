"""Clips to generate text for or to classify: checked, resized, gathered into batches. NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.batch import PADDING_CLIP
from agent_jax.client.pictures import as_array, is_image
from agent_jax.data.pipeline.domains import Domain
from agent_jax.policy.observation import Images, camera_images

Clip = Images | Sequence[Images]  # one image, or several


def prepare_clip(domain: Domain, images: Clip, call: str) -> np.ndarray:
    """The images of one clip, checked and resized, in the order of steps, then cameras.

    Args:
        domain: whose window and cameras the clip has.
        images: one image, or a sequence or array of 1 to `domain.window` of them; with several cameras a mapping or
            tuple of the cameras' images for each.
        call: that the images were given to, for messages.

    Returns:
        uint8 (images, size, size, 3).

    Raises:
        ValueError: says what was found and what was expected.
    """
    steps = _clip_steps(domain, images)
    if not 1 <= len(steps) <= domain.window:
        raise ValueError(f"{call}: found a clip of {len(steps)} images, expected 1 to {domain.window}, the window of "
                         f"domain {domain.name!r}; take {domain.window} of them, spread evenly")
    return np.stack([image for step in steps for image in camera_images(domain, step, call)])


def batch_of(domain: Domain, clips: Sequence[np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Prepared clips as a batch of so many rows, filled up.

    Returns:
        frames_BFHWC, uint8, with F = `domain.images`; and clip_BF, int32: the clip of each image, as in `Batch`.
    """
    size, cameras = domain.image_size, len(domain.cameras)
    frames_BFHWC = np.zeros((rows, domain.images, size, size, 3), np.uint8)
    clip_BF = np.full((rows, domain.images), PADDING_CLIP, np.int32)
    of_image = np.tile(np.arange(cameras), domain.window) if domain.video else np.arange(domain.images)
    for row, images in enumerate(clips):
        frames_BFHWC[row, : len(images)] = images
        clip_BF[row, : len(images)] = of_image[: len(images)]
    return frames_BFHWC, clip_BF


def _clip_steps(domain: Domain, images: Clip) -> list[Any]:
    """What each step shows."""
    if isinstance(images, Mapping):
        return [images]
    if is_image(images):
        array = as_array(images)
        return list(array) if getattr(array, "ndim", 0) == 4 else [array]
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        several_cameras = len(domain.cameras) > 1 and all(map(is_image, images))
        return [images] if several_cameras else list(images)
    return [images]
