"""The joint image and video encoder: a CLIP vision transformer, optionally with divided space-time attention.

    frames_BFHWC -> patches_BFPX -> [CLS, patches] + positions -> pre_norm -> blocks -> post_norm -> tokens_BFVD

Every image carries a CLS token; V = 1 + P, or 1 + (patches kept) when masked. In a video model the images of one clip
(equal `clip_BF`) share theirs: each holds a copy, and all copies attend to the same tokens, so they stay equal. So one
rule serves frame-level and video-level rows, mixed in any way: a clip of one image is an image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.config import VisionConfig
from agent_jax.models.attention import attend
from agent_jax.models.compute import Compute
from agent_jax.models.transformer import BlockConfig, Collect, Dense, layer_norm, like, run_blocks

# CLIP's normalisation (Radford et al., 2021; HF CLIPImageProcessor).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def patchify(frames_BFHWC: jax.Array, patch_size: int) -> jax.Array:
    """CLIP-normalised patches_BFPX of images in 0..255; X runs over row, column, channel; P over rows, then columns.

    Images are uint8, or f32 where they are augmented (augmentation.py).
    """
    B, F, height, width, C = frames_BFHWC.shape
    rows, columns = height // patch_size, width // patch_size
    scale = 1.0 / (255.0 * np.asarray(PIXEL_STD, np.float32))
    shift = -np.asarray(PIXEL_MEAN, np.float32) / np.asarray(PIXEL_STD, np.float32)
    pixels = frames_BFHWC.astype(jnp.float32)
    pixels = pixels * like(pixels, scale) + like(pixels, shift)
    grid = pixels.reshape(B, F, rows, patch_size, columns, patch_size, C).transpose(0, 1, 2, 4, 3, 5, 6)
    return grid.reshape(B, F, rows * columns, patch_size * patch_size * C)


def sincos_positions(grid: int, width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine positions (1 + grid * grid, width) as in MAE (He et al., 2022).

    Half of the width is for columns, half for rows (in this order, as its code has it); CLS gets zeros.
    """
    frequency = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width // 4))
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    parts = []
    for coordinate in (columns, rows):
        angle = coordinate.reshape(-1, 1) * frequency
        parts += [np.sin(angle), np.cos(angle)]
    table = np.concatenate(parts, axis=1)
    return np.concatenate([np.zeros((1, width)), table]).astype(np.float32)


def _class_attention(q: jax.Array, k: jax.Array, v: jax.Array, clip_BF: jax.Array) -> jax.Array:
    """CLS of every image over its own CLS and all patches of its clip: q, k, v (B, F, V, N, H) -> (B, F, 1, N, H)."""
    B, F, V, N, H = q.shape
    flat = lambda x: x[:, :, 1:].reshape(B, 1, F * (V - 1), N, H)  # noqa: E731
    spread = lambda own, all_patches: jnp.concatenate(  # noqa: E731
        [own[:, :, :1], jnp.broadcast_to(all_patches, (B, F, F * (V - 1), N, H))], axis=2)
    same_BFG = clip_BF[:, :, None] == clip_BF[:, None, :]
    mask = jnp.concatenate([jnp.ones((B, F, 1), bool), jnp.repeat(same_BFG, V - 1, axis=2)], axis=2)
    join = lambda x: x.reshape(B * F, *x.shape[2:])  # noqa: E731
    out = attend(join(q[:, :, :1]), join(spread(k, flat(k))), join(spread(v, flat(v))), mask.reshape(B * F, 1, -1))
    return out.reshape(B, F, 1, N, H)


def within_images(q: jax.Array, k: jax.Array, v: jax.Array, clip_BF: jax.Array | None, *,
                  among: Callable[..., jax.Array] = attend) -> jax.Array:
    """Spatial attention (B, F, V, N, H): a patch sees its image and CLS, CLS its whole clip (Bain et al., 2021).

    `among` computes what every patch sees; the one query of a CLS is little work.
    """
    B, F, V, N, H = q.shape
    if clip_BF is None:
        merged = (x.reshape(B * F, V, N, H) for x in (q, k, v))
        return among(*merged, None).reshape(B, F, V, N, H)
    patches = among(q[:, :, 1:].reshape(B * F, V - 1, N, H), k.reshape(B * F, V, N, H), v.reshape(B * F, V, N, H), None)
    return jnp.concatenate([_class_attention(q, k, v, clip_BF), patches.reshape(B, F, V - 1, N, H)], axis=2)


def across_images(q: jax.Array, k: jax.Array, v: jax.Array, clip_BF: jax.Array) -> jax.Array:
    """Temporal attention, (B, F, V, N, H): a patch sees its own place in all images of its clip, and CLS.

    What images that are a clip of their own get is dropped in `Block`: it is off for frame-level domains.
    """
    width = q.shape[-1]
    by_place = lambda x: x[:, :, 1:].transpose(0, 2, 1, 3, 4)  # noqa: E731 - (B, P, F, N, H)
    patch_q, patch_k, patch_v = by_place(q), by_place(k), by_place(v)
    same_BFG = clip_BF[:, :, None] == clip_BF[:, None, :]
    # The CLS key is that of the query's own image: all copies in its clip are equal.
    scale = width**-0.5
    f32 = jnp.promote_types(q.dtype, jnp.float32)
    patch_scores = jnp.einsum("BPFNH,BPGNH->BPNFG", patch_q * scale, patch_k).astype(f32)
    patch_scores = jnp.where(same_BFG[:, None, None], patch_scores, jnp.finfo(f32).min)
    class_scores = jnp.einsum("BPFNH,BFNH->BPNF", patch_q * scale, k[:, :, 0]).astype(f32)[..., None]
    weights = jax.nn.softmax(jnp.concatenate([class_scores, patch_scores], axis=-1), axis=-1).astype(q.dtype)
    out = jnp.einsum("BPNFG,BPGNH->BPFNH", weights[..., 1:], patch_v)
    out += jnp.einsum("BPNF,BFNH->BPFNH", weights[..., 0], v[:, :, 0])
    return jnp.concatenate([_class_attention(q, k, v, clip_BF), out.transpose(0, 2, 1, 3, 4)], axis=2)


class VisionEncoder(nn.Module):
    """CLIP's vision transformer (Radford et al., 2021); post_norm is applied to all tokens."""

    config: VisionConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, patches_BFPX: jax.Array, clip_BF: jax.Array, keep_BFJ: jax.Array | None = None, *,
        collect: Collect = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Encode images, or what a mask leaves of them.

        Args:
            patches_BFPX: normalised patches of all images.
            clip_BF: the clip of each image; used by a model with temporal attention.
            keep_BFJ: indices of the J patches of each image to be encoded, ascending; None: all.
            collect: "hidden": also return hidden states.

        Returns:
            tokens_BFVD in the compute dtype, V = 1 + J (or 1 + P), CLS first; and, if `collect`, hidden states
            (1 + L, B, F, V, D): after pre_norm and after every block, before post_norm.
        """
        c, compute, dtype = self.config, self.compute, self.compute.dtype
        B, F = patches_BFPX.shape[:2]
        normal = nn.initializers.normal(c.width**-0.5)  # as CLIP
        if keep_BFJ is not None:
            patches_BFPX = jnp.take_along_axis(patches_BFPX, keep_BFJ[..., None], axis=2)
        x = Dense((c.width,), compute, use_bias=False, name="patch_embedding")(patches_BFPX)
        class_D = self.param("class_embedding", normal, (c.width,), jnp.float32)
        if c.positions == "clip":
            shape = (1 + c.patches, c.width)
            position_VD = self.param("position_embedding", nn.initializers.normal(0.02), shape, jnp.float32)
        else:
            position_VD = jnp.asarray(sincos_positions(c.image_size // c.patch_size, c.width))
        place = position_VD[1:] if keep_BFJ is None else jnp.take(position_VD[1:], keep_BFJ, axis=0)
        x = x + like(x, place.astype(dtype))
        classes = jnp.broadcast_to((class_D + position_VD[0]).astype(dtype), (B, F, 1, c.width))
        x = jnp.concatenate([classes, x], axis=2)
        x = first = layer_norm(c.layer_norm_eps, dtype, name="pre_norm")(x)

        temporal = c.temporal_order if c.temporal_attention else "none"
        block = BlockConfig(c.width, c.heads, c.mlp_width, c.activation, c.layer_norm_eps, temporal=temporal)
        visibility = clip_BF if c.temporal_attention else None
        spatial = functools.partial(within_images, among=compute.patterns.among)
        x, hidden = run_blocks(block, compute, c.depth, x, visibility, collect=collect, spatial=spatial,
                               across_time=across_images)
        tokens = layer_norm(c.layer_norm_eps, dtype, name="post_norm")(x)
        return tokens, (jnp.concatenate([first[None], hidden]) if collect else None)
