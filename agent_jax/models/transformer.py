"""The pre-LayerNorm transformer block that all three stacks share, and its scan over layers.

    x_BSD -> x + out(attend(qkv(norm(x)))) -> x + down(act(up(norm(x))))

A stack holds its layers' parameters on a leading axis L, under one name, `blocks`: one path for any depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from agent_jax.models.attention import attend
from agent_jax.models.cpu.matmul import add_bias, product
from agent_jax.models.remat import POLICIES, kept, stacks_slowly
from agent_jax.runtime.sharding import constrain_rows


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution's share below x, as HF's "gelu": the exact form (JAX's default has a tanh).

    By erf, in f32: `jax.nn.gelu` takes erfc, for which XLA:CPU makes and stores four arrays of the size of x.
    """
    x_f32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * x_f32 * (1.0 + jax.lax.erf(x_f32 * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP
}


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of a block, and how it is computed."""

    width: int  # D
    heads: int  # N
    mlp_width: int  # M
    activation: str
    layer_norm_eps: float
    dtype: Any  # of matmuls
    remat: str = "none"
    unroll: int = 1  # layers in one piece of the scan; 0: no scan, each layer's parameters apart (`layers_apart`)
    dropout: float = 0.0  # after the attention and after the MLP, as in OPT
    temporal: str = "none"  # none, or where temporal attention stands: "after" or "before" the spatial one


def like(x: jax.Array, trailing: Any) -> Any:
    """An array over the last axes of x, with leading axes of 1: broadcasting is said, not inferred from ranks."""
    return trailing.reshape((1,) * (x.ndim - trailing.ndim) + trailing.shape)


class Dense(nn.Module):
    """y = x W + b over the last axis; parameters f32, product in `dtype`. Kernel (in, *features)."""

    features: tuple[int, ...]
    dtype: Any
    use_bias: bool = True
    kernel_init: Any = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., in) -> (..., *features)."""
        width = x.shape[-1]

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            # Xavier from the fan of one matrix: of q, k and v each, not of their concatenation.
            if len(shape) == 2:
                return self.kernel_init(key, shape, dtype)
            matrices = [self.kernel_init(k, (shape[0], shape[2]), dtype) for k in jax.random.split(key, shape[1])]
            return jnp.stack(matrices, axis=1)

        kernel = self.param("kernel", init, (width, *self.features), jnp.float32)
        y = product(x.astype(self.dtype).reshape(-1, width), kernel, self.dtype)
        y = kept(y)
        if self.use_bias:
            y = add_bias(y, self.param("bias", nn.initializers.zeros, self.features, jnp.float32))
        return y.reshape(*x.shape[:-1], *self.features)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al., 2016), computed in f32 and returned in `dtype`."""

    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., D) -> (..., D)."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * like(x, scale) + like(x, bias)).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head attention with fused q, k, v. `pattern` says who sees whom; by default all, or `mask_BSZ`."""

    config: BlockConfig
    pattern: Callable[..., jax.Array] = attend
    out_init: Any = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array, visibility: Any) -> jax.Array:
        """x (..., D) -> (..., D); `visibility` is handed to the pattern."""
        c = self.config
        qkv = Dense((3, c.width), c.dtype, name="qkv")(x)
        # Split, not indexed: its gradient is one concatenation, not a sum of three padded arrays.
        heads = (*x.shape[:-1], c.heads, c.width // c.heads)
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-2))
        out = self.pattern(q, k, v, visibility)
        return Dense((c.width,), c.dtype, kernel_init=self.out_init, name="out")(out.reshape(x.shape))


class Mlp(nn.Module):
    """down(activation(up(x)))."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., D) -> (..., D)."""
        c = self.config
        hidden = ACTIVATIONS[c.activation](Dense((c.mlp_width,), c.dtype, name="up")(x))
        return Dense((c.width,), c.dtype, name="down")(hidden)


def drop(x: jax.Array, rate: float, keys_B: jax.Array | None, purpose: jax.Array) -> jax.Array:
    """Dropout whose mask follows the row's own key, so that it does not depend on how rows share devices."""
    if rate == 0.0 or keys_B is None:
        return x
    draw = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, purpose), 1.0 - rate, x.shape[1:]))
    return jnp.where(draw(keys_B), x / (1.0 - rate), 0)


class TransformerBlock(nn.Module):
    """One pre-LayerNorm block, in the form that `nn.scan` wants: (carry, inputs) -> (carry, output)."""

    config: BlockConfig
    spatial: Callable[..., jax.Array] = attend
    across_time: Callable[..., jax.Array] | None = None
    collect: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, layer: jax.Array, visibility: Any, keys_B: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """x (B, S, D), or (B, F, V, D) in the video encoder; in any dtype, in which it is returned."""
        c = self.config
        carried = x.dtype
        x = x.astype(c.dtype)
        x = constrain_rows(x)  # or a compiler splits D where a weight is split, and gathers everything again
        norm = lambda name: LayerNorm(c.layer_norm_eps, c.dtype, name=name)  # noqa: E731 - one line, five uses

        def temporal(x: jax.Array) -> jax.Array:
            assert self.across_time is not None, "a block with temporal attention needs its pattern"
            attention = Attention(c, self.across_time, nn.initializers.zeros, name="temporal_attention")
            # Off for an image that is a clip of its own: itself and CLS would answer, and the output's bias.
            in_company_BF = jnp.sum(visibility[:, :, None] == visibility[:, None, :], axis=-1) > 1
            return jnp.where(in_company_BF[..., None, None], attention(norm("temporal_norm")(x), visibility), 0)

        attention = Attention(c, self.spatial, name="attention")
        spatial_input = x + temporal(x) if c.temporal == "before" else x  # residual from x, as in Frozen in Time
        x = x + drop(attention(norm("attention_norm")(spatial_input), visibility), c.dropout, keys_B, 2 * layer)
        if c.temporal == "after":
            x = x + temporal(x)
        x = x + drop(Mlp(c, name="mlp")(norm("mlp_norm")(x)), c.dropout, keys_B, 2 * layer + 1)
        return x.astype(carried), (x if self.collect else None)


def run_blocks(
    config: BlockConfig,
    depth: int,
    x: jax.Array,
    visibility: Any = None,
    keys_B: jax.Array | None = None,
    *,
    collect: bool = False,
    **patterns: Any,
) -> tuple[jax.Array, Any]:
    """Run `depth` blocks named `blocks` inside the calling module's `@nn.compact` method.

    Args:
        config: of every block.
        depth: L.
        x: (B, S, D), or (B, F, V, D) in the video encoder.
        visibility: what the attention pattern wants: mask_BSZ, clip_BF or None.
        keys_B: a dropout key for each row; None: no dropout.
        collect: also return the output of every block.
        **patterns: `spatial` and `across_time` of Block.

    Returns:
        x after the last block, and the outputs of all blocks (L, ...) if `collect`, else None.
    """
    chex.assert_axis_dimension(x, -1, config.width)
    block: Any = TransformerBlock
    if config.remat != "none":
        block = nn.remat(TransformerBlock, prevent_cse=False, policy=POLICIES[config.remat])
    if not config.unroll:
        outputs = []
        for number in range(depth):
            one = block(config, collect=collect, name=f"block_{number}", **patterns)
            x, output = one(constrain_rows(x), jnp.asarray(number), visibility, keys_B)
            outputs.append(output)
        return x, (jnp.stack(outputs) if collect else None)
    in_axes: Any = (0, nn.broadcast, nn.broadcast)
    scan = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=in_axes, length=depth,
                   unroll=min(config.unroll, depth))
    blocks = scan(config, collect=collect, name="blocks", **patterns)
    # What a scan carries it may stack, each layer's input.
    carried = jnp.float32 if stacks_slowly(x.dtype) and config.unroll < depth else x.dtype
    x, outputs = blocks(constrain_rows(x).astype(carried), jnp.arange(depth), visibility, keys_B)
    return x.astype(config.dtype), outputs


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
