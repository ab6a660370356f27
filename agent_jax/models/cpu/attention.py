"""Attention on one CPU device, in the forms that XLA:CPU has fast code for, with a gradient of its own.

    w = exp(q . k - peak), total = sum of w        out = w . v / total
    d = g / total                                  dv = w^T . d
    ds = w * (d . v - sum of d * out)              dq = ds . k, dk = ds^T . q

Products are summed in f32, and so is the softmax. XLA:CPU's fast code for products of many heads takes operands whose
last axes are the matrices, row by row, and no transposed left one. So heads are moved to the front and transpositions
made as arrays of their own. Causal queries skip the keys of later blocks. Like a flash kernel it saves no scores: the
output, the peak and the total of each query are saved, and w is computed again.

bfloat16 is computed in f32 where the processor has no instructions for its products. On several devices attention is
XLA's own (attention.py), in f32 too: its compiler would gather what is laid out by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from agent_jax.models.attention import attend, attend_causally, causal_segment_mask
from agent_jax.models.cpu.matmul import row_by_row
from agent_jax.models.remat import SAVED
from agent_jax.runtime.processor import lacks_bfloat16_products
from agent_jax.runtime.sharding import several_devices

# Causal queries are attended in blocks, each over the keys up to its own end: with 4 blocks 5/8 of the scores are made.
BLOCK_SLOTS = 64  # least queries a block: below it a CPU's matrix product loses more than the saved scores gain
MAX_BLOCKS = 8  # more save little (8 blocks: 9/16) and cost compile time


def _dot(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """An einsum summed in f32, or in its dtype where that is wider."""
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def cpu_among(q_BSNH: jax.Array, k_BZNH: jax.Array, v_BZNH: jax.Array, nothing: None = None) -> jax.Array:
    """`attend` on a CPU."""
    return _on_cpu(attend, q_BSNH, k_BZNH, v_BZNH, nothing)


def cpu_causally(q_BSNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, segment_BS: jax.Array) -> jax.Array:
    """`attend_causally` on a CPU."""
    return _on_cpu(attend_causally, q_BSNH, k_BSNH, v_BSNH, segment_BS)


def _on_cpu(several: Callable[..., jax.Array], q_BSNH: jax.Array, k_BZNH: jax.Array, v_BZNH: jax.Array,
            segment_BS: jax.Array | None) -> jax.Array:
    """Attention over all keys, or causal within segments; on several devices by another function."""
    dtype = v_BZNH.dtype
    if lacks_bfloat16_products() or several_devices():
        q_BSNH, k_BZNH, v_BZNH = (x.astype(jnp.promote_types(dtype, jnp.float32)) for x in (q_BSNH, k_BZNH, v_BZNH))
    if several_devices():
        return several(q_BSNH, k_BZNH, v_BZNH, segment_BS).astype(dtype)
    q, k, v = (_swapped(x) for x in (q_BSNH * q_BSNH.shape[-1] ** -0.5, k_BZNH, v_BZNH))
    return _swapped(_attend(q, k, v, segment_BS)).astype(dtype)


@jax.custom_vjp
def _swapped(x: jax.Array) -> jax.Array:
    """x_BNSH of x_BSNH or the reverse, as an array of its own, and so its gradient: XLA would fuse it with sums."""
    return row_by_row(x.transpose(0, 2, 1, 3))


_swapped.defvjp(lambda x: (_swapped(x), None), lambda _, g: (row_by_row(g).transpose(0, 2, 1, 3),))


@jax.custom_vjp
def _attend(q_BNSH: jax.Array, k_BNZH: jax.Array, v_BNZH: jax.Array, segment_BS: jax.Array | None) -> jax.Array:
    return _forward(q_BNSH, k_BNZH, v_BNZH, segment_BS)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, segment_BS: jax.Array | None) -> tuple[jax.Array, Any]:
    found = []
    for first, end, keys in _blocks(q, k, segment_BS):
        scores_BNSZ = _scores(_slots(q, first, end), _slots(k, 0, keys), segment_BS, first)
        peak_BNS1 = jnp.max(scores_BNSZ, axis=-1, keepdims=True)
        weights_BNSZ = jnp.exp(scores_BNSZ - peak_BNS1)
        total_BNS1 = jnp.sum(weights_BNSZ, axis=-1, keepdims=True)
        out_BNSH = _dot("BNSZ,BNZH->BNSH", row_by_row(weights_BNSZ.astype(v.dtype)), _slots(v, 0, keys))
        found.append(((out_BNSH / total_BNS1).astype(v.dtype), peak_BNS1, total_BNS1))
    joined = (jnp.concatenate(parts, axis=2) for parts in zip(*found, strict=True))
    out_BNSH, peak_BNS1, total_BNS1 = (checkpoint_name(each, SAVED) for each in joined)
    return out_BNSH, (q, k, v, segment_BS, out_BNSH, peak_BNS1, total_BNS1)


def _backward(residuals: Any, g_BNSH: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segment_BS, out_BNSH, peak_BNS1, total_BNS1 = residuals
    dtype = v.dtype
    d_BNSH = g_BNSH.astype(total_BNS1.dtype) / total_BNS1
    shift_BNS1 = jnp.sum(d_BNSH * out_BNSH.astype(total_BNS1.dtype), axis=-1, keepdims=True)
    d_BNSH = d_BNSH.astype(dtype)
    dq, dk, dv = [], [], []
    for first, end, keys in _blocks(q, k, segment_BS):
        queries, d = _slots(q, first, end), _slots(d_BNSH, first, end)
        seen, values = _slots(k, 0, keys), _slots(v, 0, keys)
        scores_BNSZ = _scores(queries, seen, segment_BS, first)
        weights_BNSZ = row_by_row(jnp.exp(scores_BNSZ - peak_BNS1[:, :, first:end]).astype(dtype))
        dw_BNSZ = _dot("BNSH,BNZH->BNSZ", d, values) - shift_BNS1[:, :, first:end]
        ds_BNSZ = row_by_row((weights_BNSZ.astype(total_BNS1.dtype) * dw_BNSZ).astype(dtype))
        dq.append(_dot("BNSZ,BNZH->BNSH", ds_BNSZ, seen).astype(dtype))
        dk.append(_transposed_dot(ds_BNSZ, queries))
        dv.append(_transposed_dot(weights_BNSZ, d))
    return jnp.concatenate(dq, axis=2), _added(dk).astype(dtype), _added(dv).astype(dtype), None


_attend.defvjp(_forward, _backward)


def causal_blocks(slots: int) -> list[tuple[int, int]]:
    """(first, end) of the blocks of queries of a row; each sees the keys before its end."""
    blocks = min(max(slots // BLOCK_SLOTS, 1), MAX_BLOCKS)
    return list(itertools.pairwise(slots * i // blocks for i in range(blocks + 1)))


def _blocks(q: jax.Array, k: jax.Array, segment_BS: jax.Array | None) -> list[tuple[int, int, int]]:
    """(first query, the one after the last, how many keys they see)."""
    if segment_BS is None:
        return [(0, q.shape[2], k.shape[2])]
    return [(first, end, end) for first, end in causal_blocks(q.shape[2])]


def _scores(queries: jax.Array, keys: jax.Array, segment_BS: jax.Array | None, first: int) -> jax.Array:
    """scores_BNSZ in f32, masked where there are segments."""
    scores_BNSZ = _dot("BNSH,BNZH->BNSZ", queries, keys)
    if segment_BS is None:
        return scores_BNSZ
    mask_BSZ = causal_segment_mask(segment_BS, first, first + queries.shape[2])
    return jnp.where(mask_BSZ[:, None], scores_BNSZ, jnp.finfo(scores_BNSZ.dtype).min)


def _transposed_dot(x_BNSZ: jax.Array, y_BNSH: jax.Array) -> jax.Array:
    """x^T . y of each head (B, N, Z, H)."""
    return _dot("BNZS,BNSH->BNZH", row_by_row(jnp.swapaxes(x_BNSZ, -1, -2)), y_BNSH)


def _added(parts: list[jax.Array]) -> jax.Array:
    """The sum of arrays (B, N, Z, H) for the first keys, of which the last is for all."""
    *shorter, added_BNZH = parts
    for part in reversed(shorter):
        added_BNZH = added_BNZH.at[:, :, : part.shape[2]].add(part)
    return added_BNZH


def _slots(x_BNSH: jax.Array, first: int, end: int) -> jax.Array:
    return row_by_row(x_BNSH[:, :, first:end])
