"""Divided space-time attention against its definition in plain NumPy (Bain et al., 2021, "Frozen in Time")."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agent_jax.config import VisionConfig
from agent_jax.models.vision import VisionEncoder, patchify

IMAGE = VisionConfig(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_width=24, positions="clip")
VIDEO = dataclasses.replace(IMAGE, temporal_attention=True)
CLIPS = np.array([[0, 0, 0, 1], [0, 1, 1, -1]])  # of three, one, one, two images, and an empty place


def frames(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*CLIPS.shape, 8, 8, 3), dtype=np.uint8)


@functools.cache
def compiled(config):
    """The encoder from pixels to (tokens, hidden states), compiled once for all tests."""

    @jax.jit
    def run(params, pixels, clips, keep):
        encoder = VisionEncoder(config)
        return encoder.apply({"params": params}, patchify(pixels, config.patch_size), clips, keep, collect="hidden")

    return run


def encode(config, params, pixels, clips, keep=None):
    tokens, hidden = compiled(config)(params, pixels, np.asarray(clips, np.int32), keep)
    return np.asarray(tokens), np.asarray(hidden)


@functools.cache
def initial_params():
    encoder = VisionEncoder(VIDEO)
    return jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 2, 4, 48)), jnp.zeros((1, 2), jnp.int32))["params"]


def random_params():
    rng = np.random.default_rng(1)
    draw = lambda leaf: np.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape), np.float32)  # noqa: E731
    return jax.tree.map(draw, initial_params())


def without_temporal(params):
    blocks = {name: leaf for name, leaf in params["blocks"].items() if not name.startswith("temporal_")}
    return {**params, "blocks": blocks}


class Reference:
    """One block over one clip: a CLS shared by F images of P patches, each attention written out query by query."""

    def __init__(self, config, blocks, layer):
        self.config = config
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf[layer], np.float64), blocks)

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.layer_norm_eps)
        return scaled * self.params[name]["scale"] + self.params[name]["bias"]

    def attention(self, x, name, groups):
        """x (tokens, D); groups[i] are the tokens that token i attends to."""
        p, heads = self.params[name], self.config.heads
        q, k, v = (x @ p["qkv"]["kernel"][:, i] + p["qkv"]["bias"][i] for i in range(3))
        width = x.shape[-1] // heads
        out = np.zeros_like(x)
        for i, group in enumerate(groups):
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = k[group, part] @ q[i, part] / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                out[i, part] = weights / weights.sum() @ v[group, part]
        return out @ p["out"]["kernel"] + p["out"]["bias"]

    def __call__(self, x, images):
        """x (1 + F * P, D): CLS, then the patches of image after image."""
        patches = (len(x) - 1) // images
        everything = list(range(len(x)))
        token = lambda f, p: 1 + f * patches + p  # noqa: E731
        space, time = [everything], [everything]
        for f in range(images):
            for p in range(patches):
                space.append([0, *(token(f, other) for other in range(patches))])
                time.append([0, *(token(other, p) for other in range(images))])

        def temporal(x):
            if images == 1:
                return 0.0
            return self.attention(self.norm(x, "temporal_norm"), "temporal_attention", time)

        def spatial(x):
            return self.attention(self.norm(x, "attention_norm"), "attention", space)

        if self.config.temporal_order == "before":
            x = x + spatial(x + temporal(x))
        else:
            x = x + spatial(x)
            x = x + temporal(x)
        up = self.norm(x, "mlp_norm") @ self.params["mlp"]["up"]["kernel"] + self.params["mlp"]["up"]["bias"]
        down = self.params["mlp"]["down"]
        return x + up / (1 + np.exp(-1.702 * up)) @ down["kernel"] + down["bias"]


@pytest.mark.parametrize("order", ["after", "before"])
def test_space_time_attention_equals_its_definition_in_numpy(order):
    config = dataclasses.replace(VIDEO, temporal_order=order)
    params = random_params()
    _, hidden = encode(config, params, frames(), CLIPS)
    for row, clips in enumerate(CLIPS):
        for clip in np.unique(clips[clips >= 0]):
            members = np.flatnonzero(clips == clip)
            states = hidden[:, row, members]  # (1 + L, F, V, D)
            np.testing.assert_array_equal(states[0, :, 0], np.broadcast_to(states[0, :1, 0], states[0, :, 0].shape))
            x = np.concatenate([states[0, 0, :1], *states[0, :, 1:]]).astype(np.float64)
            for layer in range(config.depth):
                x = Reference(config, params["blocks"], layer)(x, len(members))
                found = np.concatenate([states[layer + 1, 0, :1], *states[layer + 1, :, 1:]])
                np.testing.assert_allclose(found, x, atol=1e-5 * max(1.0, np.abs(x).max()))


def test_the_images_of_a_clip_keep_one_shared_cls():
    tokens, _ = encode(VIDEO, random_params(), frames(), CLIPS)
    np.testing.assert_allclose(tokens[0, 1:3, 0], tokens[0, [0, 0], 0], atol=1e-5)
    assert np.abs(tokens[0, 3, 0] - tokens[0, 0, 0]).max() > 1e-2


@pytest.mark.parametrize("order", ["after", "before"])
def test_at_initialisation_a_video_encoder_adds_no_temporal_attention(order):
    config = dataclasses.replace(VIDEO, temporal_order=order)
    params = initial_params()
    alone = np.arange(CLIPS.shape[1])[None].repeat(len(CLIPS), 0)
    video, _ = encode(config, params, frames(), alone)
    image, _ = encode(IMAGE, without_temporal(params), frames(), alone)
    np.testing.assert_allclose(video, image, atol=1e-5)
    # In a clip, CLS sees all images from the first block on; the patches do not see that change before the second.
    _, video = encode(config, params, frames(), np.zeros_like(CLIPS))
    _, image = encode(IMAGE, without_temporal(params), frames(), alone)
    np.testing.assert_allclose(video[1][:, :, 1:], image[1][:, :, 1:], atol=1e-5)
    assert np.abs(video[1][:, :, 0] - image[1][:, :, 0]).max() > 1e-3


@pytest.mark.parametrize("order", ["after", "before"])
def test_an_image_alone_has_no_temporal_attention_whatever_its_weights(order):
    config = dataclasses.replace(VIDEO, temporal_order=order)
    params = random_params()
    alone = np.arange(CLIPS.shape[1])[None].repeat(len(CLIPS), 0)
    video, _ = encode(config, params, frames(), alone)
    image, _ = encode(IMAGE, without_temporal(params), frames(), alone)
    np.testing.assert_allclose(video, image, atol=1e-5 * max(1.0, np.abs(image).max()))


def test_frames_of_other_clips_and_empty_places_change_nothing():
    params = random_params()
    tokens, _ = encode(VIDEO, params, frames(), CLIPS)
    changed = frames()
    changed[0, 3], changed[1, 0], changed[1, 3] = frames(1)[0, 3], frames(1)[1, 0], frames(1)[1, 3]
    again, _ = encode(VIDEO, params, changed, CLIPS)
    np.testing.assert_array_equal(again[0, :3], tokens[0, :3])
    np.testing.assert_array_equal(again[1, 1:3], tokens[1, 1:3])
    assert np.abs(again[0, 3] - tokens[0, 3]).max() > 1e-2


def test_frames_of_the_same_clip_do_change_the_others():
    params = random_params()
    tokens, _ = encode(VIDEO, params, frames(), CLIPS)
    changed = frames()
    changed[0, 0] = frames(1)[0, 0]
    again, _ = encode(VIDEO, params, changed, CLIPS)
    assert (np.abs(again[0, 1:3] - tokens[0, 1:3]).max(axis=-1) > 1e-4).all()


def test_masked_video_tokens_attend_to_the_kept_patches_of_their_place():
    """With tube masks, dropping patches equals running the definition on the patches that are left."""
    params = random_params()
    kept = np.array([0, 2])
    keep = np.broadcast_to(kept.astype(np.int32), (*CLIPS.shape, 2))
    _, hidden = encode(VIDEO, params, frames(), CLIPS, keep)
    states = hidden[:, 0, :3]
    x = np.concatenate([states[0, 0, :1], *states[0, :, 1:]]).astype(np.float64)
    for layer in range(VIDEO.depth):
        x = Reference(VIDEO, params["blocks"], layer)(x, 3)
    found = np.concatenate([states[-1, 0, :1], *states[-1, :, 1:]])
    np.testing.assert_allclose(found, x, atol=1e-5 * max(1.0, np.abs(x).max()))
