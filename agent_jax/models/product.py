"""The product of activations and a kernel, forward and backward, in the forms that compilers have fast code for.

    y_XM = x_XD . W_DM          dx_XD = g_XM . W_DM^T          dW_DM = x_XD^T . g_XM

All three are products of matrices, summed in f32, and dW is never rounded to less. JAX's own rules give the same
numbers, but XLA:CPU would copy an operand of dW into another layout, and would convert all three to f32 where x is
bf16: its fast code for bf16 (YNNPACK's; with AVX-512 BF16 nearly twice as fast as f32) has an f32 result and takes no
transposed left operand.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def product(x_XD: jax.Array, kernel: jax.Array, dtype: Any, *, transposed: bool = False) -> jax.Array:
    """y_XM in `dtype`, of a product in the dtype of x.

    Args:
        x_XD: activations in the compute dtype.
        kernel: parameters (D, M), cast to the dtype of x; their gradient has their own dtype.
        dtype: of y.
        transposed: whether the kernel is (M, D).
    """
    made: Any = _product(x_XD, kernel, dtype, transposed)
    return made


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x_XD: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool) -> jax.Array:
    return _dot(x_XD, kernel.astype(x_XD.dtype), 1, 1 if transposed else 0, dtype)


def _forward(x_XD: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool) -> tuple[jax.Array, Any]:
    return product(x_XD, kernel, dtype, transposed=transposed), (x_XD, kernel)


def _backward(dtype: Any, transposed: bool, kept: Any, g_XM: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_XD, kernel = kept
    g_XM = g_XM.astype(x_XD.dtype)
    dx_XD = _dot(g_XM, kernel.astype(x_XD.dtype), 1, 0 if transposed else 1, x_XD.dtype)
    left, right = (g_XM, x_XD) if transposed else (x_XD, g_XM)
    if _sums_in_f32(left.dtype):
        # Behind the barrier the transposed operand is a matrix of its own; else it is folded into the product.
        flat = jax.lax.optimization_barrier(left.T.reshape(-1))
        return dx_XD, _dot(flat.reshape(left.shape[::-1]), right, 1, 0, kernel.dtype)
    return dx_XD, _dot(left, right, 0, 0, kernel.dtype)


_product.defvjp(_forward, _backward)


def _dot(left: jax.Array, right: jax.Array, of_left: int, of_right: int, dtype: Any) -> jax.Array:
    """The product over one axis of each, in `dtype`."""
    summed = jnp.promote_types(left.dtype, jnp.float32) if _sums_in_f32(left.dtype) else dtype
    dimensions = (((of_left,), (of_right,)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=summed).astype(dtype)


def _sums_in_f32(dtype: Any) -> bool:
    """Whether the compiler wants to be told that a product is summed in f32. The others round its result themselves."""
    return dtype == jnp.bfloat16 and jax.default_backend() == "cpu"
