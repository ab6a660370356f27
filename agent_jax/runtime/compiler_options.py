"""The options that XLA compiles the model's programs with, by platform, where its defaults cost more than they bring.

On CPUs LLVM's level 1 compiles faster than level 3, and the programs run as fast. XLA's older code for fusions compiles
and runs faster still in f32; in bf16 it runs slower, and it compiles slowly where many layers stand one after another.
On GPUs XLA compiles and times several programs of Triton's for every fusion and product, which takes minutes; without
them fusions are XLA's own and products cuBLAS's. "Dynamic-slice fusion" computes a product twice where it is both
stacked by a scan and read elsewhere. Measurements: benchmarks/results/run_time.md.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

# For a program that runs once, or is only read: quick to compile, slow to run.
QUICKLY_COMPILED: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# For steps on CPUs.
_ANY_DTYPE: dict[str, Any] = {"xla_backend_optimization_level": 1}
_F32: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}
_MOST_LAYERS = 8  # between 3, where the older code gains, and 12, where it loses
_GPU: dict[str, Any] = {"xla_gpu_experimental_enable_fusion_autotuner": False, "xla_gpu_enable_triton_gemm": False,
                        "xla_gpu_enable_dynamic_slice_fusion": False}


def compiler_options(device: Any, dtype: Any, *, layers: int = 1) -> dict[str, Any]:
    """`compiler_options` of `jax.jit` for a program of the model that runs often.

    Args:
        device: the `jax.Device` that it is compiled for.
        dtype: of its matrix products.
        layers: how many stand one after another; 1 in a scan.
    """
    if device.platform == "cpu":
        older = np.dtype(dtype).itemsize >= 4 and layers <= _MOST_LAYERS
        wanted = _ANY_DTYPE | _F32 if older else _ANY_DTYPE
    else:
        wanted = _GPU if device.platform == "gpu" else {}
    return {name: value for name, value in wanted.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    """Whether this version of XLA has the option; they come and go."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
