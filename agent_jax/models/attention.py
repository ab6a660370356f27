"""Softmax attention, written once: queries, keys and values per head, f32 softmax, and nothing else.

    out_BSNH = softmax(q_BSNH . k_BZNH / sqrt(H), where visible) . v_BZNH

A masked score becomes the least finite number, so that its weight is exactly zero after the softmax: what stands in a
masked slot can change no bit of the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp


def attend(q_BSNH: jax.Array, k_BZNH: jax.Array, v_BZNH: jax.Array, mask_BSZ: jax.Array | None = None) -> jax.Array:
    """Attention of every query over the keys it may see (Vaswani et al., 2017, eq. 1).

    Args:
        q_BSNH: queries, in the compute dtype.
        k_BZNH: keys.
        v_BZNH: values.
        mask_BSZ: True where a query may see a key; None: everywhere. Every query must see at least one key.

    Returns:
        out_BSNH, in the dtype of the values.
    """
    scores_BNSZ = jnp.einsum("BSNH,BZNH->BNSZ", q_BSNH * q_BSNH.shape[-1] ** -0.5, k_BZNH)
    scores_BNSZ = scores_BNSZ.astype(jnp.promote_types(scores_BNSZ.dtype, jnp.float32))
    if mask_BSZ is not None:
        scores_BNSZ = jnp.where(mask_BSZ[:, None], scores_BNSZ, jnp.finfo(scores_BNSZ.dtype).min)
    weights_BNSZ = jax.nn.softmax(scores_BNSZ, axis=-1).astype(v_BZNH.dtype)
    return jnp.einsum("BNSZ,BZNH->BSNH", weights_BNSZ, v_BZNH)


def causal_segment_mask(segment_BS: jax.Array, first: int = 0, end: int | None = None) -> jax.Array:
    """mask_BSZ of the queries first .. end - 1 over the keys 0 .. end - 1: earlier slots of the same sample."""
    end = segment_BS.shape[1] if end is None else end
    causal_1SZ = jnp.arange(first, end)[None, :, None] >= jnp.arange(end)[None, None, :]
    return causal_1SZ & (segment_BS[:, first:end, None] == segment_BS[:, None, :end])


def attend_causally(q_BSNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, segment_BS: jax.Array) -> jax.Array:
    """Attention within a packed row: a slot sees itself and the earlier slots of its own sample.

    Returns:
        out_BSNH, in the dtype of the values.
    """
    return attend(q_BSNH, k_BSNH, v_BSNH, causal_segment_mask(segment_BS))


class LayerCache(NamedTuple):
    """Keys and values of one layer, in the compute dtype, heads before slots as the products below read them."""

    k_BNZH: jax.Array
    v_BNZH: jax.Array

    @classmethod
    def of(cls, k_BSNH: jax.Array, v_BSNH: jax.Array) -> Self:
        """Keys and values as a layer makes them."""
        return cls(k_BSNH.transpose(0, 2, 1, 3), v_BSNH.transpose(0, 2, 1, 3))


class VisibleLayer(NamedTuple):
    """What one layer kept of slots read before, and which of them each row sees."""

    cached: LayerCache
    visible_BZ: jax.Array


def attend_cached(q_BCNH: jax.Array, index_BC: jax.Array, new: LayerCache, past: Sequence[VisibleLayer]) -> jax.Array:
    """Attention of the slots of a chunk over what was read before, and over the chunk up to themselves.

    Args:
        q_BCNH: queries, of all slots of the chunk or of some.
        index_BC: the slot of the chunk that each query belongs to; B may be 1.
        new: keys and values of the chunk.
        past: what was read before, in parts.

    Returns:
        out_BCNH, in the dtype of the values.
    """
    q_BNCH = q_BCNH.transpose(0, 2, 1, 3) * q_BCNH.shape[-1] ** -0.5
    own_BCZ = jnp.arange(new.k_BNZH.shape[2])[None, None] <= index_BC[:, :, None]
    parts = [*((layer, visible_BZ[:, None]) for layer, visible_BZ in past), (new, own_BCZ)]
    scores = []
    for layer, mask in parts:
        scores_BNCZ = jnp.einsum("BNCH,BNZH->BNCZ", q_BNCH, layer.k_BNZH)
        scores_BNCZ = scores_BNCZ.astype(jnp.promote_types(scores_BNCZ.dtype, jnp.float32))
        scores.append(jnp.where(mask[:, None], scores_BNCZ, jnp.finfo(scores_BNCZ.dtype).min))
    weights_BNCZ = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(new.v_BNZH.dtype)
    ends = list(itertools.accumulate(score.shape[-1] for score in scores))
    weights = jnp.split(weights_BNCZ, ends[:-1], axis=-1)
    out_BNCH = sum(jnp.einsum("BNCZ,BNZH->BNCH", weight, layer.v_BNZH)
                   for weight, (layer, _) in zip(weights, parts, strict=True))
    return jnp.asarray(out_BNCH).transpose(0, 2, 1, 3)
