"""The options that XLA compiles the model's programs with, by platform, where its defaults cost more than they bring.

On CPUs, two of them. On 2 cores of an Intel Xeon (Sapphire Rapids), jax 0.10.2, f32, 2026-11-26, by
`benchmarks/train_step.py`'s worker:

    step of configs/babyai.py, 16 rows        compiled in 14.3 to 16.8 s     0.15 s a step
      LLVM at level 1 instead of 3                        11.7 s             0.15
      and XLA's older code for fusions                     8.7 s             0.12
    step of the full model, "dots"                        16.7 s             11 s
      with both                                           13.0 s             11 s

In bf16 the older code compiles the full model's step in 9.5 s instead of 13.4, but a step takes 1.18 of the time (8
turns, 2026-11-28), so there it is level 1 alone; nor does it serve acting with many layers, which stand one after
another instead of in a scan. Of a policy's first nine actions (its programs are compiled), `history="sliding"`, and a
later one, one run of each (a script of 2026-11-26):

    3 layers, 96 wide    9.8 s, 6.2 ms        level 1  10.5 s, 5.9 ms        both   8.6 s, 5.0 ms
    full model          31.1 s, 1.3 s                  28.2 s, 1.2 s               46.8 s, 1.2 s

On GPUs, three; for acting too, where they have not been tried. On an H200 with 16 cores, jax 0.11.2, bf16, 64 rows of 4
images, 2026-11-26, XLA's defaults had not compiled the step of the full model after two minutes: for every fusion and
product they compile and time several programs of Triton's. Without these (fusions by XLA's own code, products by
cuBLAS) it took one minute beside five other compilations. "Dynamic-slice fusion" lets cuBLAS write into the stacked
arrays of a scan, but where the product is read elsewhere too it is computed twice: 8 of the 110 ms of a step, by XLA's
profiler (docs/design/performance.md). What a step takes without it has not been measured.
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
_MOST_LAYERS = 8  # measured at 3 and at 12, above
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
