"""Attention by the kernels of a platform, for the two patterns of the model: `config.model.attention` chooses.

    kernel   runs on                    an image: every token sees every token   a row: earlier slots of its own sample
    xla      anything                   attend (attention.py)                    attend_causally (attention.py)
    cpu      CPU                        cpu_among (cpu/attention.py)             cpu_causally (cpu/attention.py)
    cudnn    NVIDIA GPU, bfloat16       flash                                    flash with a mask (B, 1, S, S)
    splash   TPU                        flash, from 512 tokens on                flash in blocks, from 512 slots on
    auto     splash on TPU, cudnn on an NVIDIA GPU where it can be, cpu on a CPU, else xla (config/kernels.py)

All of them are held to the same test. They serve training and validation. Acting takes `cpu` on a CPU and `xla`
elsewhere, for images and for rows that begin; what follows reads a cache (`attend_cached`).
Flash kernels (Dao et al., 2022) keep no scores: they are made again in the backward pass. What an XLA kernel writes to
memory for a row of S slots is N * S * S scores; so long rows gain, and short ones do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from agent_jax.models.attention import attend, attend_causally, causal_segment_mask
from agent_jax.models.cpu.attention import cpu_among, cpu_causally
from agent_jax.runtime.sharding import ROW_AXES

SPLASH_LANES = 128  # blocks are multiples of it, and so is the padded length
SPLASH_BLOCK = 512  # greatest block: two of 512 x 64 and their scores are a small part of a core's fast memory
SPLASH_LEAST = 512  # slots below which XLA's own is as good


class Patterns(NamedTuple):
    """Who sees whom, by one kernel."""

    among: Callable[..., jax.Array]  # (q_BSNH, k_BZNH, v_BZNH, None) -> out_BSNH: every query sees every key
    causally: Callable[..., jax.Array]  # (q_BSNH, k_BSNH, v_BSNH, segment_BS) -> out_BSNH


def cudnn_among(q_BSNH: jax.Array, k_BZNH: jax.Array, v_BZNH: jax.Array, nothing: None = None) -> jax.Array:
    """`attend` by cuDNN: bfloat16, heads of at most 128."""
    del nothing
    rows, queries, keys = *q_BSNH.shape[:2], k_BZNH.shape[1]
    if queries % 2 == keys % 2 == 0:
        return jax.nn.dot_product_attention(q_BSNH, k_BZNH, v_BZNH, implementation="cudnn")
    # To jax, cuDNN's backward pass wants even lengths, although that is so with a mask or bias only.
    q, k, v = (_padded(x, x.shape[1] + x.shape[1] % 2) for x in (q_BSNH, k_BZNH, v_BZNH))
    real_B = jnp.full((rows,), keys, jnp.int32)
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=real_B, implementation="cudnn")
    return out[:, :queries]


def cudnn_causally(q_BSNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, segment_BS: jax.Array) -> jax.Array:
    """`attend_causally` by cuDNN, which takes no segments but a mask, and with one even lengths."""
    slots = q_BSNH.shape[1]
    q, k, v, segment_BS = (_padded(x, slots + slots % 2) for x in (q_BSNH, k_BSNH, v_BSNH, segment_BS))
    mask_B1SS = causal_segment_mask(segment_BS)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask_B1SS, implementation="cudnn")[:, :slots]


def splash_among(q_BSNH: jax.Array, k_BZNH: jax.Array, v_BZNH: jax.Array, nothing: None = None) -> jax.Array:
    """`attend` by splash attention; shorter ones by XLA. Queries and keys are equally many."""
    rows, tokens = q_BSNH.shape[:2]
    if tokens < SPLASH_LEAST or k_BZNH.shape[1] != tokens:
        return attend(q_BSNH, k_BZNH, v_BZNH, nothing)
    return _splash(q_BSNH, k_BZNH, v_BZNH, jnp.ones((rows, tokens), jnp.int32), causal=False)


def splash_causally(q_BSNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, segment_BS: jax.Array) -> jax.Array:
    """`attend_causally` by splash attention; shorter ones by XLA."""
    if q_BSNH.shape[1] < SPLASH_LEAST:
        return attend_causally(q_BSNH, k_BSNH, v_BSNH, segment_BS)
    return _splash(q_BSNH, k_BSNH, v_BSNH, segment_BS, causal=True)


KERNELS = {
    "xla": Patterns(attend, attend_causally),
    "cpu": Patterns(cpu_among, cpu_causally),
    "cudnn": Patterns(cudnn_among, cudnn_causally),
    "splash": Patterns(splash_among, splash_causally),
}


def _splash(q_BSNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, segment_BS: jax.Array, *,
            causal: bool) -> jax.Array:
    """Splash attention within segments, each device on its own rows and heads where a mesh is set."""
    # Imported here, because it takes a tenth of a second that acting, which has no use for it, would wait.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    slots = q_BSNH.shape[1]
    length = slots + -slots % SPLASH_LANES
    block = max(n for n in range(SPLASH_LANES, SPLASH_BLOCK + 1, SPLASH_LANES) if length % n == 0)
    sizes = dict.fromkeys(("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
                           "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"), block)
    # What pads a row is of segment 0, as its empty slots are; of an image, whose tokens are of segment 1, nobody's.
    q, k, v, segment_BS = (_padded(x, length) for x in (q_BSNH, k_BSNH, v_BSNH, segment_BS))

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment_BS: jax.Array) -> jax.Array:
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * q.shape[-1] ** -0.5, k, v))
        mask = (masks.CausalMask if causal else masks.FullMask)((length, length))
        attention = kernel.make_splash_mha(masks.MultiHeadMask([mask] * q.shape[1]), head_shards=1, q_seq_shards=1,
                                           block_sizes=kernel.BlockSizes(**sizes))
        out_BNSH: Any = jax.vmap(attention)(q, k, v, kernel.SegmentIds(segment_BS, segment_BS))
        return out_BNSH.transpose(0, 2, 1, 3)

    if not jax.sharding.get_abstract_mesh().empty:  # a kernel of one device: XLA cannot split it
        split = PartitionSpec(ROW_AXES, None, "tensor", None)
        local = jax.shard_map(local, in_specs=(split, split, split, PartitionSpec(ROW_AXES, None)), out_specs=split,
                              check_vma=False)
    return local(q, k, v, segment_BS)[:, :slots]


def _padded(x: jax.Array, length: int) -> jax.Array:
    """Zeros behind the second axis of x, up to a length."""
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1])) + ((0, 0),) * (x.ndim - 2))


def cudnn_flops(primitive: str, shapes: Sequence[Sequence[int]]) -> int | None:
    """Floating-point operations of a primitive of cuDNN's attention, whose jaxpr holds no matrix products to count.

    Args:
        primitive: its name in a jaxpr.
        shapes: of its operands: q_BSNH, k_BZNH, ...

    Returns:
        Two products of the forward pass (scores, output), or five of the backward pass (scores again and the gradients
        of weights, queries, keys and values), masked or not; None for another primitive.
    """
    if not primitive.startswith("dot_product_attention_"):
        return None
    (B, S, N, H), Z = shapes[0], shapes[1][1]
    return (5 if "_bwd" in primitive else 2) * 2 * B * N * S * Z * H
