import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_rows import quick_jit

from agent_jax.config import MaeConfig
from agent_jax.models.compute import Compute
from agent_jax.models.mae import MaeDecoder, PatchMask, kept_patches, random_mask
from agent_jax.models.vision import sincos_positions

PATCHES, KEPT, HIDDEN = 196, 49, 147  # of a 224-pixel image at 75%
ROWS = 256
# Two cameras over two steps are four images, each its own clip; or a video of three images and an image; or padding.
CAMERAS, VIDEO, PADDED = (0, 1, 2, 3), (0, 0, 0, 1), (0, 1, -1, -1)


@jax.jit
def mask_rows(keys_B, clip_BF):
    return random_mask(keys_B, clip_BF, PATCHES, 0.75)


def keys(seed=0):
    return jax.random.split(jax.random.key(seed), ROWS)


def clips(*kinds):
    return np.resize(np.array(kinds, np.int32), (ROWS, 4))


@pytest.fixture(scope="module")
def masks():
    """Of 256 rows, alternately with two cameras, with a video, and with padding."""
    return jax.tree.map(np.asarray, mask_rows(keys(), clips(CAMERAS, VIDEO, PADDED)))


@pytest.fixture(scope="module")
def camera_masks():
    return jax.tree.map(np.asarray, mask_rows(keys(1), clips(CAMERAS)))


def test_three_quarters_of_196_patches_are_147(masks):
    assert masks.hide_BFI.shape == (ROWS, 4, HIDDEN)
    assert masks.keep_BFJ.shape == (ROWS, 4, KEPT)


@pytest.mark.parametrize(("patches", "ratio", "kept"), [(196, 0.75, 49), (196, 0.5, 98), (49, 0.75, 12), (4, 0.99, 1),
                                                        (100, 0.9, 10), (25, 0.8, 5)])
def test_the_share_that_stays_visible_is_rounded_down_but_never_empty(patches, ratio, kept):
    assert kept_patches(patches, ratio) == kept
    mask = jax.eval_shape(lambda: random_mask(keys(), clips(CAMERAS), patches, ratio))
    assert mask.keep_BFJ.shape[-1] == kept
    assert mask.hide_BFI.shape[-1] == patches - kept


def test_kept_and_hidden_patches_are_a_partition_each_in_raster_order(masks):
    assert (np.diff(masks.keep_BFJ) > 0).all()
    assert (np.diff(masks.hide_BFI) > 0).all()
    together = np.sort(np.concatenate([masks.keep_BFJ, masks.hide_BFI], axis=-1), axis=-1)
    np.testing.assert_array_equal(together, np.broadcast_to(np.arange(PATCHES), together.shape))


def test_restore_brings_kept_and_hidden_patches_back_to_their_places(masks):
    shuffled = np.concatenate([masks.keep_BFJ, masks.hide_BFI], axis=-1)
    restored = np.take_along_axis(shuffled, masks.restore_BFP, axis=-1)
    np.testing.assert_array_equal(restored, np.broadcast_to(np.arange(PATCHES), restored.shape))


def test_images_of_one_clip_share_a_mask_and_others_do_not(masks):
    for row, clip_F in enumerate(clips(CAMERAS, VIDEO, PADDED)):
        for f, g in itertools.combinations(range(4), 2):
            same = np.array_equal(masks.keep_BFJ[row, f], masks.keep_BFJ[row, g])
            assert same == (clip_F[f] == clip_F[g]), (row, f, g)


def test_no_two_images_of_any_rows_share_a_mask(camera_masks):
    assert len({keep.tobytes() for keep in camera_masks.keep_BFJ.reshape(-1, KEPT)}) == 4 * ROWS


def test_masks_follow_the_keys_of_their_rows_and_not_their_places(masks):
    order = np.random.default_rng(0).permutation(ROWS)
    moved = mask_rows(keys()[order], clips(CAMERAS, VIDEO, PADDED)[order])
    chex.assert_trees_all_equal(moved, jax.tree.map(lambda leaf: leaf[order], masks))


def test_the_mask_of_an_image_does_not_depend_on_what_stands_beside_it(masks):
    alone = mask_rows(keys(), clips((0, -1, -1, -1)))
    np.testing.assert_array_equal(alone.keep_BFJ[:, 0], masks.keep_BFJ[:, 0])


def test_other_keys_draw_other_masks(masks):
    other = mask_rows(keys(2), clips(CAMERAS, VIDEO, PADDED))
    assert not (np.asarray(other.keep_BFJ) == masks.keep_BFJ).all(axis=-1).any()


def test_every_patch_is_kept_equally_often_and_independently_of_the_others(camera_masks):
    kept = np.zeros((ROWS * 4, PATCHES))
    np.put_along_axis(kept, camera_masks.keep_BFJ.reshape(-1, KEPT), 1.0, axis=1)
    draws = len(kept)
    # Five standard deviations of a binomial count: 196 patches exceed them with probability 1e-4.
    assert np.abs(kept.sum(axis=0) - draws / 4).max() < 5 * np.sqrt(draws * 3 / 16)
    # A pair is kept together with probability 49/196 * 48/195; six deviations for 19,110 pairs.
    together = (kept.T @ kept)[np.triu_indices(PATCHES, 1)]
    chance = KEPT / PATCHES * (KEPT - 1) / (PATCHES - 1)
    assert np.abs(together - draws * chance).max() < 6 * np.sqrt(draws * chance * (1 - chance))


def test_masks_of_two_cameras_are_independent_of_each_other(camera_masks):
    kept = np.zeros((ROWS, 4, PATCHES))
    np.put_along_axis(kept, camera_masks.keep_BFJ, 1.0, axis=2)
    for f, g in itertools.combinations(range(4), 2):
        overlap = (kept[:, f] * kept[:, g]).sum(axis=1)  # hypergeometric: mean 12.25, variance 6.93
        assert abs(overlap.mean() - KEPT * KEPT / PATCHES) < 5 * np.sqrt(6.93 / ROWS)


# The decoder, on a grid of 4 x 4.

CONFIG = MaeConfig(width=16, depth=2, heads=2, mlp_width=24)
DECODER = MaeDecoder(CONFIG, patch_values=6, grid=4)
VISIBLE_WIDTH = 8


@quick_jit
def paint(params, tokens_BFVD, mask):
    return DECODER.apply({"params": params}, tokens_BFVD, mask)


@pytest.fixture(scope="module")
def small_mask():
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(16) for _ in range(4)]).reshape(2, 2, 16)
    return PatchMask(order[..., :4], order[..., 4:], np.argsort(order, axis=-1))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).standard_normal((2, 2, 5, VISIBLE_WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def params(tokens, small_mask):
    shapes = jax.eval_shape(lambda: DECODER.init(jax.random.key(0), tokens, small_mask))["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


def test_every_hidden_patch_is_painted_in_f32(params, tokens, small_mask):
    painted = paint(params, tokens, small_mask)
    chex.assert_shape(painted, (2, 2, 12, 6))
    chex.assert_type(painted, jnp.float32)
    coarse = dataclasses.replace(DECODER, compute=Compute(jnp.bfloat16))
    chex.assert_type(jax.eval_shape(coarse.apply, {"params": params}, tokens, small_mask), jnp.float32)


def test_each_visible_token_is_put_back_to_the_place_it_came_from(params, tokens, small_mask):
    # The same patches told in another order must give the same picture.
    rng = np.random.default_rng(3)
    kept, hidden = rng.permutation(4), rng.permutation(12)
    order = np.concatenate([small_mask.keep_BFJ[..., kept], small_mask.hide_BFI[..., hidden]], axis=-1)
    again = PatchMask(order[..., :4], order[..., 4:], np.argsort(order, axis=-1))
    moved = paint(params, tokens[:, :, np.concatenate([[0], 1 + kept])], again)
    np.testing.assert_allclose(moved, paint(params, tokens, small_mask)[:, :, hidden], atol=1e-5)


def test_every_visible_token_and_cls_matter_to_their_own_image_alone(params, tokens, small_mask):
    painted = np.asarray(paint(params, tokens, small_mask))
    for v in range(5):
        changed = tokens.copy()
        changed[0, 1, v] += 1.0
        differs = (np.asarray(paint(params, changed, small_mask)) != painted).any(axis=(2, 3))
        np.testing.assert_array_equal(differs, [[False, True], [False, False]])


def test_a_hidden_patch_starts_from_the_mask_token_at_its_sincos_place(params, tokens, small_mask):
    # With blocks that add nothing, what is left can be written out.
    plain = {**params, "blocks": jax.tree.map(np.zeros_like, params["blocks"])}
    x = params["mask_token"] + sincos_positions(4, CONFIG.width)[1:][small_mask.hide_BFI]
    centred = x - x.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + CONFIG.layer_norm_eps)
    normed = normed * params["norm"]["scale"] + params["norm"]["bias"]
    expected = normed @ params["prediction"]["kernel"] + params["prediction"]["bias"]
    np.testing.assert_allclose(paint(plain, tokens, small_mask), expected, atol=1e-5)
