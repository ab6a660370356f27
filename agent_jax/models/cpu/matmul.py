"""The product of activations and a kernel, forward and backward, in the forms that compilers have fast code for.

    y_XM = x_XD . W_DM          dx_XD = g_XM . W_DM^T          dW_DM = x_XD^T . g_XM

All three are products of matrices, summed in f32, and dW is never rounded to less. JAX's own rules give the same
numbers, but XLA:CPU would copy an operand of dW into another layout, and would convert all three to f32 where x is
bf16: its fast code for bf16 (YNNPACK's; with AVX-512 BF16 nearly twice as fast as f32) has an f32 result and takes no
transposed left operand. One row of x counts as such, so it is taken twice there. Where the processor has no
instructions for it, that code runs at half of f32's rate (measured on AVX2), so operands are made f32 there. M may be
several axes, as (3, D) of q, k and v. They are joined on one device, where XLA:CPU would copy the kernel for dx, but
not on several: these may split the last of them, which joined could not be told. On several CPU devices bf16 operands
of an f32 result are made f32: the fast code would need the transposed matrix whole on each, and where XLA:CPU folds the
transposition in again, jax 0.10.2 cannot execute what it has compiled.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from agent_jax.runtime.processor import lacks_bfloat16_products
from agent_jax.runtime.sharding import several_devices


def product(x_XD: jax.Array, kernel: jax.Array, dtype: Any, *, transposed: bool = False) -> jax.Array:
    """y (X, *M) in `dtype`, of a product in the dtype of x.

    Args:
        x_XD: activations in the compute dtype.
        kernel: parameters (D, *M), cast to the dtype of x; their gradient has their own dtype.
        dtype: of y.
        transposed: whether the kernel is (M, D).
    """
    if kernel.ndim > 2 and not several_devices():
        made: Any = _product(x_XD, kernel.reshape(kernel.shape[0], -1), dtype, transposed)
        return made.reshape(x_XD.shape[0], *kernel.shape[1:])
    made = _product(x_XD, kernel, dtype, transposed)
    return made


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x_XD: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool) -> jax.Array:
    return dot_of(x_XD, kernel.astype(x_XD.dtype), (1,), (1,) if transposed else (0,), dtype)


def _forward(x_XD: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool) -> tuple[jax.Array, Any]:
    return _product(x_XD, kernel, dtype, transposed), (x_XD, kernel)


def _backward(dtype: Any, transposed: bool, kept: Any, g_XM: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_XD, kernel = kept
    g_XM = g_XM.astype(x_XD.dtype)
    of_g = tuple(range(1, g_XM.ndim))
    dx_XD = dot_of(g_XM, kernel.astype(x_XD.dtype), of_g, (0,) if transposed else of_g, x_XD.dtype)
    left, right = (g_XM, x_XD) if transposed else (x_XD, g_XM)
    return dx_XD, dot_of(left, right, (0,), (0,), kernel.dtype)


_product.defvjp(_forward, _backward)


@jax.custom_vjp
def add_bias(y_XM: jax.Array, bias_M: jax.Array) -> jax.Array:
    """y + b, in the dtype of y; the bias's gradient is summed in its own dtype."""
    return y_XM + bias_M.astype(y_XM.dtype)[None]


add_bias.defvjp(lambda y_XM, bias_M: (add_bias(y_XM, bias_M), bias_M),
                lambda bias_M, g_XM: (g_XM, jnp.sum(g_XM, axis=0, dtype=bias_M.dtype)))


def dot_of(left: jax.Array, right: jax.Array, of_left: tuple[int, ...], of_right: tuple[int, ...],
           dtype: Any) -> jax.Array:
    """The product over some axes of each, in `dtype`."""

    def plain(left: jax.Array, right: jax.Array) -> jax.Array:
        return jax.lax.dot_general(left, right, ((of_left, of_right), ((), ())), preferred_element_type=dtype)

    def fast(left: jax.Array, right: jax.Array, of_left: tuple[int, ...], of_right: tuple[int, ...]) -> jax.Array:
        dimensions = ((of_left, of_right), ((), ()))
        return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32).astype(dtype)

    def on_cpu(left: jax.Array, right: jax.Array) -> jax.Array:
        if lacks_bfloat16_products():
            return fast(left.astype(jnp.float32), right.astype(jnp.float32), of_left, of_right)
        if several_devices():
            made = jnp.promote_types(left.dtype, dtype)
            return plain(left.astype(made), right.astype(made))
        if of_left != (0,):
            rows = left if left.shape[0] > 1 else jnp.concatenate([left, left])
            return fast(rows, right, of_left, of_right)[: left.shape[0]]
        if right.ndim == 2 and left.shape[1] > right.shape[1]:  # the narrower one is transposed, and then the result
            return _transposed(row_by_row(fast(_transposed(right), left, (1,), (0,))))
        return fast(_transposed(left), right, (1,), of_right)

    if left.dtype != jnp.bfloat16:
        return plain(left, right)
    # By the platform that is compiled for, which need not be the one at hand.
    made: Any = jax.lax.platform_dependent(left, right, cpu=on_cpu, default=plain)
    return made


def _transposed(x_XD: jax.Array) -> jax.Array:
    """x_DX as a matrix of its own; else XLA would fold the transposition into what reads it."""
    return row_by_row(x_XD.T)


def row_by_row(x: jax.Array) -> jax.Array:
    """x, whose last axis is contiguous in memory, and the one before it next to that, whatever reads it."""
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
