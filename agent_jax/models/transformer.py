"""The pre-LayerNorm transformer block that all three stacks share, and its scan over layers.

    x_BSD -> x + out(attend(qkv(norm(x)))) -> x + down(act(up(norm(x))))

A stack holds its layers' parameters on a leading axis L, under one name, `blocks`: one path for any depth.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from agent_jax.models.attention import LayerCache, VisibleLayer, attend, attend_cached
from agent_jax.models.compute import Compute
from agent_jax.models.remat import REMAT_POLICIES, SAVED
from agent_jax.runtime.sharding import constrain_rows

Collect = Literal["hidden", "keys_values"] | None  # what a stack returns of its blocks

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),  # the exact form, as HF's "gelu"
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP
}


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of a block."""

    width: int  # D
    heads: int  # N
    mlp_width: int  # M
    activation: str
    layer_norm_eps: float
    dropout: float = 0.0  # after the attention and after the MLP, as in OPT
    temporal: str = "none"  # none, or where temporal attention stands: "after" or "before" the spatial one


def like(x: jax.Array, trailing: Any) -> Any:
    """An array over the last axes of x, with leading axes of 1: broadcasting is said, not inferred from ranks."""
    return trailing.reshape((1,) * (x.ndim - trailing.ndim) + trailing.shape)


class Dense(nn.Module):
    """y = x W + b over the last axis; parameters f32. Kernel (in, *features)."""

    features: tuple[int, ...]
    compute: Compute
    use_bias: bool = True
    kernel_init: Any = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., in) -> (..., *features), in the compute dtype."""
        width, dtype = x.shape[-1], self.compute.dtype

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            # Xavier from the fan of one matrix: of q, k and v each, not of their concatenation.
            if len(shape) == 2:
                return self.kernel_init(key, shape, dtype)
            matrices = [self.kernel_init(k, (shape[0], shape[2]), dtype) for k in jax.random.split(key, shape[1])]
            return jnp.stack(matrices, axis=1)

        kernel = self.param("kernel", init, (width, *self.features), jnp.float32)
        y = self.compute.matmul(x.astype(dtype).reshape(-1, width), kernel, dtype)
        y = checkpoint_name(y, SAVED)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.features, jnp.float32)
            y = (y + like(y, bias)).astype(dtype)  # added in f32, and so is its gradient summed
        return y.reshape(*x.shape[:-1], *self.features)


def layer_norm(eps: float, dtype: Any, name: str | None = None) -> nn.LayerNorm:
    """Layer normalisation over the last axis (Ba et al., 2016), computed in f32 and returned in `dtype`."""
    return nn.LayerNorm(eps, dtype, use_fast_variance=False, name=name)


class Attention(nn.Module):
    """Multi-head attention with fused q, k, v. `pattern` says which slots each slot sees, by default all."""

    config: BlockConfig
    compute: Compute
    pattern: Callable[..., jax.Array] = attend
    out_init: Any = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array, visibility: Any, past: Sequence[VisibleLayer] = (), last_B: jax.Array | None = None
                 ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """x (..., D) -> (..., D), and the keys and values (..., N, H).

        Args:
            x: normed.
            visibility: what the pattern takes.
            past: in cached decoding, what was read before x (B, C, D), all of which sees it; visibility is unused.
            last_B: in cached decoding, the one slot of each row whose output (B, 1, D) is wanted; None: all.
        """
        c = self.config
        qkv = Dense((3, c.width), self.compute, name="qkv")(x)
        heads = (*x.shape[:-1], c.heads, c.width // c.heads)
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-2))
        if last_B is not None:
            q_B1NH = jnp.take_along_axis(q, last_B[:, None, None, None], axis=1)
            out = attend_cached(q_B1NH, last_B[:, None], LayerCache.of(k, v), past)
        elif past:
            out = attend_cached(q, jnp.arange(x.shape[1])[None], LayerCache.of(k, v), past)
        else:
            out = self.pattern(q, k, v, visibility)
        out = out.reshape(*out.shape[:-2], c.width)
        return Dense((c.width,), self.compute, kernel_init=self.out_init, name="out")(out), (k, v)


class Mlp(nn.Module):
    """down(activation(up(x)))."""

    config: BlockConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., D) -> (..., D)."""
        c = self.config
        hidden = ACTIVATIONS[c.activation](Dense((c.mlp_width,), self.compute, name="up")(x))
        return Dense((c.width,), self.compute, name="down")(hidden)


def drop(x: jax.Array, rate: float, keys_B: jax.Array | None, purpose: jax.Array) -> jax.Array:
    """Dropout whose mask follows the row's own key, so that it does not depend on how rows share devices."""
    if rate == 0.0 or keys_B is None:
        return x
    draw = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, purpose), 1.0 - rate, x.shape[1:]))
    return jnp.where(draw(keys_B), x / (1.0 - rate), 0)


class TransformerBlock(nn.Module):
    """One pre-LayerNorm block, in the form that `nn.scan` wants: (carry, inputs) -> (carry, output)."""

    config: BlockConfig
    compute: Compute = Compute()
    spatial: Callable[..., jax.Array] = attend
    across_time: Callable[..., jax.Array] | None = None
    collect: Collect = None

    @nn.compact
    def __call__(
        self, x: jax.Array, layer: jax.Array, visibility: Any, keys_B: jax.Array | None,
        past: Sequence[VisibleLayer] = (), last_B: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """x (B, S, D), or (B, F, V, D) in the video encoder; `past` and `last_B` as in Attention."""
        c, compute = self.config, self.compute
        x = constrain_rows(x)  # or a compiler splits D where a weight is split, and gathers everything again
        norm = functools.partial(layer_norm, c.layer_norm_eps, compute.dtype)

        def temporal(x: jax.Array) -> jax.Array:
            assert self.across_time is not None, "a block with temporal attention needs its pattern"
            attention = Attention(c, compute, self.across_time, nn.initializers.zeros, name="temporal_attention")
            # Off for an image that is a clip of its own: itself and CLS would answer, and the output's bias.
            in_company_BF = jnp.sum(visibility[:, :, None] == visibility[:, None, :], axis=-1) > 1
            return jnp.where(in_company_BF[..., None, None], attention(norm("temporal_norm")(x), visibility)[0], 0)

        spatial_input = x + temporal(x) if c.temporal == "before" else x  # residual from x, as in Frozen in Time
        attention = Attention(c, compute, self.spatial, name="attention")
        attended, keys_values = attention(norm("attention_norm")(spatial_input), visibility, past, last_B)
        if last_B is not None:
            x = jnp.take_along_axis(x, last_B[:, None, None], axis=1)
        x = x + drop(attended, c.dropout, keys_B, 2 * layer)
        if c.temporal == "after":
            x = x + temporal(x)
        x = x + drop(Mlp(c, compute, name="mlp")(norm("mlp_norm")(x)), c.dropout, keys_B, 2 * layer + 1)
        if self.collect == "keys_values":
            return x, LayerCache.of(*keys_values)
        return x, (x if self.collect == "hidden" else None)


def run_blocks(
    config: BlockConfig,
    compute: Compute,
    depth: int,
    x: jax.Array,
    visibility: Any = None,
    keys_B: jax.Array | None = None,
    *,
    past: Sequence[Sequence[VisibleLayer]] = (),
    last_B: jax.Array | None = None,
    collect: Collect = None,
    **patterns: Any,
) -> tuple[jax.Array, Any]:
    """Run `depth` blocks named `blocks` inside the calling module's `@nn.compact` method.

    Args:
        config: of every block.
        compute: how they are computed.
        depth: L.
        x: (B, S, D), or (B, F, V, D) in the video encoder.
        visibility: what the attention pattern takes: segment_BS, clip_BF or None.
        keys_B: a dropout key for each row; None: no dropout.
        past: of each layer, what was read before x, in cached decoding. Without a scan only, as is the next.
        last_B: the one slot of each row whose output (B, 1, D) is wanted: the last layer computes no other.
        collect: what to return of every block: its output, or its keys and values.
        **patterns: `spatial` and `across_time` of TransformerBlock.

    Returns:
        x after the last block, and what is collected: the outputs of all blocks (L, ...), or a list of their keys and
        values (stacked in a scan); without a meaning if `collect` is None.
    """
    chex.assert_axis_dimension(x, -1, config.width)
    block: Any = TransformerBlock
    if compute.remat != "none":
        block = nn.remat(TransformerBlock, prevent_cse=False, policy=REMAT_POLICIES[compute.remat])
    if compute.scan is None:
        outputs = []
        for layer in range(depth):
            one = block(config, compute, collect=collect, name=f"block_{layer}", **patterns)
            x, output = one(x, jnp.asarray(layer), visibility, keys_B, past[layer] if past else (),
                            last_B if layer == depth - 1 else None)
            outputs.append(output)
        return x, (jnp.stack(outputs) if collect == "hidden" else outputs)
    in_axes: Any = (0, nn.broadcast, nn.broadcast)
    scan = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=in_axes, length=depth,
                   unroll=min(compute.scan, depth))
    blocks = scan(config, compute, collect=collect, name="blocks", **patterns)
    return blocks(constrain_rows(x), jnp.arange(depth), visibility, keys_B)


def layers_apart(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters with `block_0`, `block_1`, ... in the place of each `blocks` (L, ...).

    A scan copies every layer's parameters out of the stack before it uses them: little beside a training step, but as
    much as a product with one token takes.
    """
    apart: dict[str, Any] = {}
    for name, part in params.items():
        if name == "blocks":
            depth = len(jax.tree.leaves(part)[0])
            apart |= {f"block_{n}": jax.tree.map(lambda leaf, n=n: leaf[n], part) for n in range(depth)}
        else:
            apart[name] = layers_apart(part) if isinstance(part, Mapping) else part
    return apart
