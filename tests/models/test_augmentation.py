"""Changes of colour: the formulas against PIL and colorsys, one draw a row, and where in a step they count."""

from __future__ import annotations

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from agent_jax.config import AugmentationConfig
from agent_jax.models.augmentation import augment, brightness, hue, saturation

PAPER = AugmentationConfig(brightness=(0.7, 1.4), saturation=(0.7, 1.4), hue=0.05)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
PIXELS[0, :8] = [[0, 0, 0], [255, 255, 255], [90, 90, 90], [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 200, 200],
                 [200, 200, 9]]
changed = jax.jit(augment, static_argnums=2)
IMAGES = np.random.default_rng(1).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8)


def keys(*seeds: int) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.asarray(seeds))


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
@pytest.mark.parametrize(("change", "reference"),
                         [(brightness, ImageEnhance.Brightness), (saturation, ImageEnhance.Color)])
def test_brightness_and_saturation_are_those_of_pil(change, reference, factor):
    expected = np.asarray(reference(Image.fromarray(PIXELS)).enhance(factor), np.float32)
    # PIL truncates the result, and rounds its grey before it is used.
    np.testing.assert_allclose(change(PIXELS.astype(np.float32), factor), expected, rtol=0, atol=1.5)


@pytest.mark.parametrize("turn", [-0.05, 0.0, 0.05, 0.4, 1 / 3])
def test_hue_is_that_of_colorsys(turn):
    expected = []
    for pixel in PIXELS.reshape(-1, 3) / 255:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((h + turn) % 1.0, s, v))
    found = hue(PIXELS.astype(np.float32), turn).reshape(-1, 3)
    np.testing.assert_allclose(found, 255 * np.asarray(expected), rtol=0, atol=1e-2)


def test_what_is_off_leaves_the_images_as_they_are():
    frames = jnp.asarray(IMAGES)
    assert augment(frames, keys(0, 1, 2), AugmentationConfig()) is frames


def test_every_image_of_a_row_gets_the_same_draw_and_rows_do_not():
    twice = jnp.asarray(np.repeat(np.repeat(IMAGES[:1, :1], 2, axis=1), 3, axis=0))
    found = np.asarray(changed(twice, keys(5, 6, 5), PAPER))
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 1


def test_a_draw_follows_the_rows_key_and_not_its_place_or_the_other_changes():
    frames = jnp.asarray(IMAGES)
    found = changed(frames, keys(3, 4, 5), PAPER)
    np.testing.assert_allclose(changed(frames[::-1], keys(5, 4, 3), PAPER)[::-1], found, rtol=1e-6)
    grey = jnp.full((3, 1, 2, 2, 3), 100, jnp.uint8)  # no saturation and no hue: only brightness shows
    alone = changed(grey, keys(3, 4, 5), AugmentationConfig(brightness=(0.7, 1.4)))
    np.testing.assert_allclose(changed(grey, keys(3, 4, 5), PAPER), alone, rtol=1e-5)


def test_brightness_and_saturation_are_drawn_apart():
    frames = jnp.asarray(np.full((50, 1, 1, 1, 3), (120, 100, 100), np.uint8))
    factors = []
    for config in (AugmentationConfig(brightness=(0.7, 1.4)), AugmentationConfig(saturation=(0.7, 1.4))):
        r, g, _ = np.moveaxis(np.asarray(changed(frames, keys(*range(50)), config)).reshape(50, 3), 1, 0)
        factors.append(g / 100 if config.brightness else (r - g) / 20)
    assert abs(np.corrcoef(factors)[0, 1]) < 0.5


def test_draws_fill_their_range():
    grey = jnp.full((500, 1, 1, 1, 3), 100, jnp.uint8)
    factor = np.asarray(changed(grey, keys(*range(500)), AugmentationConfig(brightness=(0.7, 1.4))))[..., 0] / 100
    assert 0.7 <= factor.min() < 0.71
    assert 1.39 < factor.max() <= 1.4
    red = jnp.asarray(np.full((500, 1, 1, 1, 3), (200, 40, 40), np.uint8))
    colours = np.asarray(changed(red, keys(*range(500)), AugmentationConfig(hue=0.05))).reshape(-1, 3)
    turns = np.asarray([colorsys.rgb_to_hsv(*colour)[0] for colour in colours])
    turns = np.where(turns > 0.5, turns - 1, turns)
    assert -0.0501 <= turns.min() < -0.049
    assert 0.049 < turns.max() <= 0.0501


def test_values_stay_within_those_of_an_image():
    found = np.asarray(changed(jnp.asarray(IMAGES), keys(1, 2, 3), PAPER))
    assert found.dtype == np.float32
    assert found.min() >= -1e-4
    assert found.max() <= 255 + 1e-4
