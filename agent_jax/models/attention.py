"""Softmax attention, written once: queries, keys and values per head, f32 softmax, and nothing else.

    out_BSNH = softmax(q_BSNH . k_BZNH / sqrt(H), where visible) . v_BZNH

A masked score becomes the least finite number, so that its weight is exactly zero after the softmax: what stands in a
masked place can change no bit of the result. Heads are moved to the front (B, N, S, H), and the division by the sum of
the softmax is done on the output, which is Z / H times smaller than the weights: on a CPU that halves attention's time.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Causal queries are attended in blocks, each over the keys up to its own end: with 4 blocks 5/8 of the scores are made.
BLOCK_SLOTS = 64  # least queries a block: below it a CPU's matrix product loses more than the saved scores gain
MAX_BLOCKS = 8  # more save little (8 blocks: 9/16) and cost compile time


def _attend_heads(q_BNSH: jax.Array, k_BNZH: jax.Array, v_BNZH: jax.Array, mask: jax.Array | None) -> jax.Array:
    scores_BNSZ = jnp.einsum("BNSH,BNZH->BNSZ", q_BNSH, k_BNZH)
    scores_BNSZ = scores_BNSZ.astype(jnp.promote_types(scores_BNSZ.dtype, jnp.float32))  # softmax in f32
    if mask is not None:
        scores_BNSZ = jnp.where(mask, scores_BNSZ, jnp.finfo(scores_BNSZ.dtype).min)
    peak_BNS1 = jax.lax.stop_gradient(jnp.max(scores_BNSZ, axis=-1, keepdims=True))
    weights_BNSZ = jnp.exp(scores_BNSZ - peak_BNS1)
    sum_BNS1 = jnp.sum(weights_BNSZ, axis=-1, keepdims=True)
    out_BNSH = jnp.einsum("BNSZ,BNZH->BNSH", weights_BNSZ.astype(v_BNZH.dtype), v_BNZH)
    return (out_BNSH / sum_BNS1).astype(v_BNZH.dtype)


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
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BSNH * q_BSNH.shape[-1] ** -0.5, k_BZNH, v_BZNH))
    return _attend_heads(q, k, v, None if mask_BSZ is None else mask_BSZ[:, None]).transpose(0, 2, 1, 3)


def causal_blocks(slots: int) -> list[tuple[int, int]]:
    """(first, end) of the blocks of queries of a row; each sees the keys before its end."""
    blocks = min(max(slots // BLOCK_SLOTS, 1), MAX_BLOCKS)
    return list(itertools.pairwise(slots * i // blocks for i in range(blocks + 1)))


def causal_segment_mask(segment_BS: jax.Array, first: int = 0, end: int | None = None) -> jax.Array:
    """mask_BSZ of the queries first .. end - 1 over the keys 0 .. end - 1: earlier slots of the same sample."""
    end = segment_BS.shape[1] if end is None else end
    causal_1SZ = jnp.arange(first, end)[None, :, None] >= jnp.arange(end)[None, None, :]
    return causal_1SZ & (segment_BS[:, first:end, None] == segment_BS[:, None, :end])


def attend_causally(q_BSNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, segment_BS: jax.Array) -> jax.Array:
    """Attention within a packed row: a slot sees itself and the earlier slots of its own sample.

    Args:
        q_BSNH: queries, in the compute dtype.
        k_BSNH: keys.
        v_BSNH: values.
        segment_BS: the sample each slot belongs to.

    Returns:
        out_BSNH, in the dtype of the values.
    """
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BSNH * q_BSNH.shape[-1] ** -0.5, k_BSNH, v_BSNH))
    out = []
    for first, end in causal_blocks(q_BSNH.shape[1]):
        mask_BSZ = causal_segment_mask(segment_BS, first, end)
        out.append(_attend_heads(q[:, :, first:end], k[:, :, :end], v[:, :, :end], mask_BSZ[:, None]))
    return jnp.concatenate(out, axis=2).transpose(0, 2, 1, 3)


def attend_after(q_BCNH: jax.Array, k_BENH: jax.Array, v_BENH: jax.Array, index_BC: jax.Array,
                 past: Sequence[tuple[tuple[jax.Array, jax.Array], jax.Array]]) -> jax.Array:
    """Attention of the slots of a chunk over what was read before and over the chunk up to themselves.

    Args:
        q_BCNH: queries, of all slots of the chunk or of some.
        k_BENH: keys of the chunk.
        v_BENH: values of the chunk.
        index_BC: the slot of the chunk that each query belongs to; B may be 1.
        past: parts that were read before: ((k_BNZH, v_BNZH), visible_BZ).

    Returns:
        out_BCNH, in the dtype of the values.
    """
    width = q_BCNH.shape[-1]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BCNH * width**-0.5, k_BENH, v_BENH))
    own_BCE = jnp.arange(k.shape[2])[None, None] <= index_BC[:, :, None]
    parts = [(*cached, visible_BZ[:, None]) for cached, visible_BZ in past] + [(k, v, own_BCE)]
    scores = []
    for keys_BNZH, _, mask in parts:
        scores_BNCZ = jnp.einsum("BNCH,BNZH->BNCZ", q, keys_BNZH)
        scores_BNCZ = scores_BNCZ.astype(jnp.promote_types(scores_BNCZ.dtype, jnp.float32))  # softmax in f32
        scores.append(jnp.where(mask[:, None], scores_BNCZ, jnp.finfo(scores_BNCZ.dtype).min))
    peak_BNC1 = functools.reduce(jnp.maximum, (jnp.max(score, axis=-1, keepdims=True) for score in scores))
    weights = [jnp.exp(score - peak_BNC1) for score in scores]
    total_BNC1 = functools.reduce(jnp.add, (jnp.sum(weight, axis=-1, keepdims=True) for weight in weights))
    out = [jnp.einsum("BNCZ,BNZH->BNCH", weight.astype(values.dtype), values)
           for weight, (_, values, _) in zip(weights, parts, strict=True)]
    out_BNCH = (functools.reduce(jnp.add, out) / total_BNC1).astype(v.dtype)
    return out_BNCH.transpose(0, 2, 1, 3)
