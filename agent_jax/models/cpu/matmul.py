"""Matrix products in the forms that XLA:CPU has fast code for; the products are those of models/matmul.py.

XLA:CPU's fast code for bfloat16 (YNNPACK's; with AVX-512 BF16 or AMX nearly twice as fast as f32) has an f32 result and
takes no transposed left operand; else XLA:CPU converts all to f32. One row of x counts as transposed, so it is taken
twice. Where the processor has no instructions for it, that code runs at half of f32's rate, so operands are made f32.
Kernels of several axes, as (3, D) of q, k and v, are joined on one device, where XLA:CPU would copy them for dx, but
not on several, which may split the last of them. On several devices bfloat16 operands are made f32: the fast code would
need the transposed matrix whole on each, and where XLA:CPU folds the transposition in again, jax 0.10.2 cannot execute
what it has compiled.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from agent_jax.models.matmul import dot, matmul
from agent_jax.runtime.processor import lacks_bfloat16_products
from agent_jax.runtime.sharding import several_devices


def cpu_matmul(x_XD: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool = False) -> jax.Array:
    """`matmul` on a CPU."""
    if kernel.ndim > 2 and not several_devices():
        made: Any = matmul(x_XD, kernel.reshape(kernel.shape[0], -1), dtype, transposed, cpu_dot)
        return made.reshape(x_XD.shape[0], *kernel.shape[1:])
    return matmul(x_XD, kernel, dtype, transposed, cpu_dot)


def cpu_dot(left: jax.Array, right: jax.Array, of_left: tuple[int, ...], of_right: tuple[int, ...],
            dtype: Any) -> jax.Array:
    """The product over some axes of each, in `dtype`."""
    if left.dtype != jnp.bfloat16:
        return dot(left, right, of_left, of_right, dtype)
    if lacks_bfloat16_products():
        return _fast(left.astype(jnp.float32), right.astype(jnp.float32), of_left, of_right).astype(dtype)
    if several_devices():
        operand = jnp.promote_types(left.dtype, dtype)
        return dot(left.astype(operand), right.astype(operand), of_left, of_right, dtype)
    if of_left != (0,):
        rows = left if left.shape[0] > 1 else jnp.concatenate([left, left])
        return _fast(rows, right, of_left, of_right)[: left.shape[0]].astype(dtype)
    if right.ndim == 2 and left.shape[1] > right.shape[1]:  # the narrower one is transposed, and then the result
        return _transposed(row_by_row(_fast(_transposed(right), left, (1,), (0,)).astype(dtype)))
    return _fast(_transposed(left), right, (1,), of_right).astype(dtype)


def _fast(left: jax.Array, right: jax.Array, of_left: tuple[int, ...], of_right: tuple[int, ...]) -> jax.Array:
    return jax.lax.dot_general(left, right, ((of_left, of_right), ((), ())), preferred_element_type=jnp.float32)


def _transposed(x_XD: jax.Array) -> jax.Array:
    """x_DX as a matrix of its own; else XLA would fold the transposition into what reads it."""
    return row_by_row(x_XD.T)


def row_by_row(x: jax.Array) -> jax.Array:
    """x, whose last axis is contiguous in memory, and the one before it next to that, whatever reads it."""
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
