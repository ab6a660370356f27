"""What the backward pass finds kept, and what it computes again: `config.model.remat`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

KEPT = "kept"  # name of what `remat="dots"` keeps


def _is_cudnn_forward(primitive: str) -> bool:
    """Whether a primitive of a jaxpr is cuDNN's attention, forward; its outputs are what the backward pass needs."""
    return primitive.startswith("dot_product_attention_fwd")


# Of a flash kernel the output and a number or two a query are kept: little, and it is not run again.
POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(KEPT),
        lambda primitive, *_, **__: _is_cudnn_forward(primitive.name)),
    "full": None,
}


def stacks_slowly(dtype: Any) -> bool:
    """Whether it is bfloat16 on XLA:CPU, which puts one layer's into a scan's stack by converting all layers' twice."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return dtype == jnp.bfloat16 and device is not None and device.platform == "cpu"


def kept_residual(y: jax.Array) -> jax.Array:
    """`kept` in the forward part of a `custom_vjp`, where a policy sees no names inside of a `custom_jvp`.

    As bits where a stack of bfloat16 is slow.
    """
    if not stacks_slowly(y.dtype):
        return checkpoint_name(y, KEPT)
    bits = checkpoint_name(jax.lax.bitcast_convert_type(y, jnp.uint16), KEPT)
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


@jax.custom_jvp
def kept(y: jax.Array) -> jax.Array:
    """y, under the name of what `remat="dots"` keeps for the backward pass."""
    return kept_residual(y)


kept.defjvp(lambda primals, tangents: (kept_residual(*primals), *tangents))
