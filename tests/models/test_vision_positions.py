"""Where patches are: raster order, fixed and trainable positions, and what a mask does to both."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_rows import quick_jit

from agent_jax.config import VisionConfig
from agent_jax.models.vision import VisionEncoder, patchify, sincos_positions

CONFIG = VisionConfig(image_size=12, patch_size=4, width=16, depth=1, heads=2, mlp_width=16)  # a grid of 3 x 3
KEEP = np.array([[[1, 4, 8], [0, 2, 3]]])


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (1, 2, 12, 12, 3), dtype=np.uint8)


def patches_of(frames):
    """CLIP-normalised patches, one by one."""
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = (frames / 255.0 - mean) / std
    cut = [pixels[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(1, 2, 48)
           for row in range(3) for column in range(3)]
    return np.stack(cut, axis=2)


def norm(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + CONFIG.layer_norm_eps)


def tokens_without_blocks(config, frames, keep):
    """Tokens of an encoder whose blocks add nothing, and its parameters: what is left depends on one patch each."""
    encoder = VisionEncoder(config)
    patches, clip = patchify(jnp.asarray(frames), 4), jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), patches, clip))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    params["blocks"] = jax.tree.map(np.zeros_like, params["blocks"])
    for name in ("pre_norm", "post_norm"):
        params[name] = {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
    tokens, _ = quick_jit(lambda params: encoder.apply({"params": params}, patches, clip, keep))(params)
    return np.asarray(tokens), params


def test_patches_are_clip_normalised_in_raster_order_by_row_column_and_channel(frames):
    found = patchify(jnp.asarray(frames), 4)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, patches_of(frames), atol=1e-5)


@pytest.mark.parametrize("grid", [3, 14])
def test_sincos_positions_are_those_of_the_masked_autoencoder(grid):
    # He et al. (2022), as in their code: sines then cosines of the column, then of the row; CLS has zeros.
    table, width = sincos_positions(grid, 16), 16
    assert table.shape == (1 + grid * grid, width)
    assert table.dtype == np.float32
    assert not table[0].any()
    for row in range(grid):
        for column in range(grid):
            expected = [wave(coordinate / 10_000 ** (i / 4)) for coordinate in (column, row)
                        for wave in (math.sin, math.cos) for i in range(4)]
            np.testing.assert_allclose(table[1 + row * grid + column], expected, atol=1e-6)


def test_sincos_positions_tell_all_places_apart():
    assert len({row.tobytes() for row in sincos_positions(14, 768)}) == 197


@pytest.mark.parametrize("keep", [None, KEEP], ids=["all", "masked"])
@pytest.mark.parametrize("positions", ["sincos", "clip"])
def test_each_token_is_its_own_patch_at_its_own_place_and_cls_comes_first(frames, positions, keep):
    config = dataclasses.replace(CONFIG, positions=positions)
    tokens, params = tokens_without_blocks(config, frames, keep)
    table = sincos_positions(3, 16) if positions == "sincos" else params["position_embedding"]
    embedded = patches_of(frames) @ params["patch_embedding"]["kernel"] + table[1:]
    if keep is not None:
        embedded = np.take_along_axis(embedded, keep[..., None], axis=2)
    classes = np.broadcast_to(params["class_embedding"] + table[0], (1, 2, 1, 16))
    expected = norm(norm(np.concatenate([classes, embedded], axis=2)))
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


def test_only_clip_positions_are_parameters():
    names = {}
    for positions in ("sincos", "clip"):
        encoder = VisionEncoder(dataclasses.replace(CONFIG, positions=positions))
        arguments = jnp.zeros((1, 2, 9, 48)), jnp.zeros((1, 2), jnp.int32)
        init = functools.partial(encoder.init, jax.random.key(0))
        names[positions] = jax.eval_shape(init, *arguments)["params"]
    assert names["clip"].keys() - names["sincos"].keys() == {"position_embedding"}
    assert names["clip"]["position_embedding"].shape == (10, 16)
