"""How a model is computed. Nothing here changes its parameters or, but for rounding, its outputs."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp

from agent_jax.config import ModelConfig
from agent_jax.models.attention_kernels import KERNELS, Patterns
from agent_jax.models.cpu.matmul import cpu_matmul
from agent_jax.models.matmul import matmul


@dataclasses.dataclass(frozen=True)
class Compute:
    """How all parts of a model are computed."""

    dtype: Any = jnp.float32  # of matrix products and of what they read and write
    remat: str = "none"  # config.model.remat
    scan: int | None = 1  # layers compiled as one piece of the scan over layers; None: no scan, see `layers_apart`
    attention: str = "xla"  # a kernel of attention_kernels.py; "cpu" chooses the products of models/cpu as well

    @classmethod
    def of(cls, config: ModelConfig, attention: str = "xla") -> Self:
        """What a config asks for, with an attention kernel that its device has (config/kernels.py)."""
        return cls(jnp.dtype(config.dtype), config.remat, config.unroll, attention)

    @property
    def f32(self) -> Any:
        """The dtype of sums, softmax and losses: f32, or `dtype` where that is wider."""
        return jnp.promote_types(self.dtype, jnp.float32)

    @property
    def patterns(self) -> Patterns:
        """Attention within an image and within a row."""
        return KERNELS[self.attention]

    def matmul(self, x_XD: jax.Array, kernel: jax.Array, dtype: Any, *, transposed: bool = False) -> jax.Array:
        """The product of activations and a kernel (matmul.py)."""
        return (cpu_matmul if self.attention == "cpu" else matmul)(x_XD, kernel, dtype, transposed)
