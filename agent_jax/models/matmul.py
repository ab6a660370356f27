"""The product of activations and a kernel, whose gradient is never rounded to the compute dtype.

    y_XM = x_XD . W_DM          dx_XD = g_XM . W_DM^T          dW_DM = x_XD^T . g_XM

Operands are in the dtype of x. JAX's own rule would return dW in it too, before it is added up over microbatches and
devices; here it is in the dtype of the parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax


def dot(left: jax.Array, right: jax.Array, of_left: tuple[int, ...], of_right: tuple[int, ...],
        dtype: Any) -> jax.Array:
    """The product over some axes of each, in `dtype`."""

    def plain(left: jax.Array, right: jax.Array) -> jax.Array:
        return jax.lax.dot_general(left, right, ((of_left, of_right), ((), ())), preferred_element_type=dtype)

    if left.dtype == dtype:
        return plain(left, right)
    # XLA:CPU executes few products of bfloat16 with an f32 result. By the platform that is compiled for.
    made: Any = jax.lax.platform_dependent(
        left, right, cpu=lambda left, right: plain(left.astype(dtype), right.astype(dtype)), default=plain)
    return made


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def matmul(x_XD: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool = False,
           dot: Callable[..., jax.Array] = dot) -> jax.Array:
    """y (X, *M) in `dtype`.

    Args:
        x_XD: activations in the compute dtype.
        kernel: parameters (D, *M), cast to the dtype of x; their gradient has their own dtype.
        dtype: of y.
        transposed: whether the kernel is (M, D).
        dot: makes each of the three products.
    """
    return dot(x_XD, kernel.astype(x_XD.dtype), (1,), (1,) if transposed else (0,), dtype)


def _forward(x_XD: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool, dot: Callable[..., jax.Array]
             ) -> tuple[jax.Array, Any]:
    return matmul(x_XD, kernel, dtype, transposed, dot), (x_XD, kernel)


def _backward(dtype: Any, transposed: bool, dot: Callable[..., jax.Array], saved: Any, g_XM: jax.Array
              ) -> tuple[jax.Array, jax.Array]:
    x_XD, kernel = saved
    g_XM = g_XM.astype(x_XD.dtype)
    of_g = tuple(range(1, g_XM.ndim))
    dx_XD = dot(g_XM, kernel.astype(x_XD.dtype), of_g, (0,) if transposed else of_g, x_XD.dtype)
    left, right = (g_XM, x_XD) if transposed else (x_XD, g_XM)
    return dx_XD, dot(left, right, (0,), (0,), kernel.dtype)


matmul.defvjp(_forward, _backward)
