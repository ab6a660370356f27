"""The masked autoencoder: which patches are hidden, and the decoder that paints them (He et al., 2022).

    visible tokens_BFVD -> input -> unshuffled with mask tokens (1 + P) + sin-cos -> blocks -> norm -> masked pixels

The encoder sees a quarter of the patches by default, and the loss is taken on the hidden ones alone.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from agent_jax.config import MaeConfig
from agent_jax.models.compute import Compute
from agent_jax.models.transformer import BlockConfig, Dense, layer_norm, like, run_blocks
from agent_jax.models.vision import sincos_positions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PatchMask:
    """A partition of every image's patches, both parts in raster order."""

    keep_BFJ: jax.Array  # int32 indices of the patches the encoder sees
    hide_BFI: jax.Array  # int32 indices of the patches to be painted
    restore_BFP: jax.Array  # int32: where patch p stands in [keep, hide]


def kept_patches(patches: int, mask_ratio: float) -> int:
    """J: how many of P patches stay visible (49 of 196 at 75%)."""
    return max(1, int(patches * (1.0 - mask_ratio) + 1e-6))  # 100 * (1 - 0.9) is a little less than 10


def random_mask(keys_B: jax.Array, clip_BF: jax.Array, patches: int, mask_ratio: float) -> PatchMask:
    """A uniformly random mask for every clip: images of one clip share theirs (tubes), others do not."""
    visible = kept_patches(patches, mask_ratio)
    of_clip = lambda key, clip: jax.random.uniform(jax.random.fold_in(key, clip + 1), (patches,))  # noqa: E731
    noise_BFP = jax.vmap(jax.vmap(of_clip, in_axes=(None, 0)))(keys_B, clip_BF)
    order_BFP = jnp.argsort(noise_BFP, axis=-1)
    rank_BFP = jnp.argsort(order_BFP, axis=-1)
    raster_BFP = jnp.broadcast_to(jnp.arange(patches), rank_BFP.shape)
    # Sorting by (hidden, raster order) brings both parts into raster order.
    order_BFP = jnp.argsort(jnp.where(rank_BFP < visible, 0, patches) + raster_BFP, axis=-1)
    return PatchMask(order_BFP[..., :visible], order_BFP[..., visible:], jnp.argsort(order_BFP, axis=-1))


class MaeDecoder(nn.Module):
    """Paints the hidden patches from the encoder's visible tokens."""

    config: MaeConfig
    patch_values: int  # X, pixel values of a patch
    grid: int  # patches along an edge
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, tokens_BFVD: jax.Array, mask: PatchMask) -> jax.Array:
        """predicted_BFIX: normalised pixels of the hidden patches, in f32, in the order of `mask.hide_BFI`."""
        c, compute = self.config, self.compute
        B, F = tokens_BFVD.shape[:2]
        patches = self.grid**2
        x = Dense((c.width,), compute, name="input")(tokens_BFVD)
        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (c.width,), jnp.float32)
        hidden = jnp.broadcast_to(mask_token.astype(compute.dtype), (B, F, mask.hide_BFI.shape[-1], c.width))
        shuffled = jnp.concatenate([x[:, :, 1:], hidden], axis=2)
        image = jnp.take_along_axis(shuffled, mask.restore_BFP[..., None], axis=2)
        x = jnp.concatenate([x[:, :, :1], image], axis=2)
        x = x + like(x, sincos_positions(self.grid, c.width).astype(compute.dtype))
        block = BlockConfig(c.width, c.heads, c.mlp_width, c.activation, c.layer_norm_eps)
        x = x.reshape(B * F, 1 + patches, c.width)
        x, _ = run_blocks(block, compute, c.depth, x, spatial=compute.patterns.among)
        x = layer_norm(c.layer_norm_eps, compute.dtype, name="norm")(x).reshape(B, F, 1 + patches, c.width)
        x = jnp.take_along_axis(x[:, :, 1:], mask.hide_BFI[..., None], axis=2)
        return Dense((self.patch_values,), compute, name="prediction")(x).astype(compute.f32)
