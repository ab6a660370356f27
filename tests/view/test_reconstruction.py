from __future__ import annotations

import numpy as np
import pytest

from agent_jax.view.reconstruction import draw_reconstruction, masked_title, reconstruct

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
PATCH, SIDE = 8, 3


def example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, masks, and the predictions of a perfect model, patch by patch from the definition."""
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (2, PATCH * SIDE, PATCH * SIDE, 3), dtype=np.uint8)
    mask = random.random((2, SIDE * SIDE)) < 0.6
    predicted = np.zeros((2, SIDE * SIDE, PATCH * PATCH * 3), np.float32)
    for image in range(2):
        for patch in range(SIDE * SIDE):
            top, left = patch // SIDE * PATCH, patch % SIDE * PATCH
            pixels = frames[image, top : top + PATCH, left : left + PATCH] / 255
            predicted[image, patch] = ((pixels - MEAN) / STD).ravel()
    return frames, mask, predicted


def patch_of(image: np.ndarray, patch: int) -> np.ndarray:
    top, left = patch // SIDE * PATCH, patch % SIDE * PATCH
    return image[top : top + PATCH, left : left + PATCH]


def test_perfect_predictions_give_back_the_images_and_others_change_hidden_patches_alone() -> None:
    frames, mask, predicted = example()
    shown, masked, rebuilt = reconstruct(frames, mask, predicted, mean=MEAN, std=STD)
    np.testing.assert_array_equal(shown, frames)
    np.testing.assert_array_equal(rebuilt, frames)
    _, _, black = reconstruct(frames, mask, np.full_like(predicted, -10), mean=MEAN, std=STD)
    for image in range(2):
        for patch in range(SIDE * SIDE):
            original, hidden = patch_of(frames[image], patch), mask[image, patch]
            np.testing.assert_array_equal(patch_of(black[image], patch), 0 if hidden else original)
            np.testing.assert_array_equal(patch_of(masked[image], patch), 225 if hidden else original)


def test_predictions_that_are_not_numbers_are_drawn_black() -> None:
    frames, mask, predicted = example()
    _, _, rebuilt = reconstruct(frames, np.ones_like(mask), np.full_like(predicted, np.nan), mean=MEAN, std=STD)
    assert not rebuilt.any()


def test_the_picture_shows_the_three_columns_side_by_side() -> None:
    frames, mask, predicted = example()
    pixels = np.asarray(draw_reconstruction(frames, mask, predicted, mean=MEAN, std=STD).convert("RGB"))
    scale, gap, head = 7, 8, 26  # 24 pixels to at least 168
    assert pixels.shape == (head + 2 * (168 + gap), 3 * 168 + 4 * gap, 3)
    for column, images in enumerate(reconstruct(frames, mask, predicted, mean=MEAN, std=STD)):
        for row in range(2):
            top, left = head + row * (168 + gap), gap + column * (168 + gap)
            np.testing.assert_array_equal(pixels[top : top + 168 : scale, left : left + 168 : scale], images[row])


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    frames, mask, predicted = example()
    for wrong in (
        (frames[:1], mask, predicted),
        (frames, mask[:, :8], predicted),
        (frames, mask, predicted[..., :-1]),
        (frames / 255, mask, predicted),
    ):
        with pytest.raises(ValueError, match=r"found .* expected"):
            reconstruct(*wrong, mean=MEAN, std=STD)


def test_the_title_says_how_many_patches_are_hidden() -> None:
    mask = np.arange(49)[None] < np.asarray([[37], [37]])  # what a ratio of 75% hides: 75.5%, not 76%
    assert masked_title(mask) == "masked (37 of 49 hidden)"
    assert masked_title(np.arange(4)[None] < np.asarray([[1], [3]])) == "masked (1 to 3 of 4 hidden)"
