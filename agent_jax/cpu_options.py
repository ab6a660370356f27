"""How XLA is to compile for CPUs: steps that run often, and programs that run once or never.

Two of its defaults cost more than they bring here. On 2 cores of an Intel Xeon (Sapphire Rapids), jax 0.10.2, f32,
2026-11-26, by `benchmarks/train_step.py`'s worker:

    step of configs/babyai.py, 16 rows        compiled in 14.3 to 16.8 s     0.15 s a step
      LLVM at level 1 instead of 3                        11.7 s             0.15
      and XLA's older code for fusions                     8.7 s             0.12
    step of the full model, "dots"                        16.7 s             11 s
      with both                                           13.0 s             11 s

In bf16 the older code had not compiled the full model's step after minutes, so there it is level 1 alone.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

# For a program that runs once, or is only read: quick to compile, slow to run.
QUICKLY_COMPILED: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_ANY_DTYPE: dict[str, Any] = {"xla_backend_optimization_level": 1}
_F32: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}


def cpu_options(device: Any, dtype: Any) -> dict[str, Any] | None:
    """`compiler_options` of `jax.jit` for a program of the model.

    Args:
        device: the `jax.Device` that it is compiled for.
        dtype: of its matrix products.

    Returns:
        None where the device is no CPU.
    """
    if device.platform != "cpu":
        return None
    wanted = _ANY_DTYPE if np.dtype(dtype).itemsize < 4 else _ANY_DTYPE | _F32
    return {name: value for name, value in wanted.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    """Whether this version of XLA has the option; they come and go."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
