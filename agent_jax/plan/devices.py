"""What a plan is compiled for: devices of the chip's own compiler, or as many of this machine's.

libtpu for TPUs, jax's CUDA plugin for GPUs; neither needs a chip.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import jax

from agent_jax.plan.gpu_target import has_compiler
from agent_jax.plan.topology import Topology
from agent_jax.runtime.extras import install


def prepare(topology: Topology) -> tuple[list[Any], str]:
    """Devices to compile for, and why what follows is an estimate ("" if it is none).

    Must be called before JAX is used: it decides how many CPU devices there are.

    Raises:
        ValueError: libtpu does not answer; another process may have it.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # what is read from there was warned of long ago
    compiler, extra = ("libtpu", "tpu") if topology.is_tpu else ("the compiler for GPUs", "cuda")
    why = (f"{compiler} is not installed here: python -m venv .venv-{extra} && .venv-{extra}/bin/{install(extra)}, "
           f"then .venv-{extra}/bin/python -m agent_jax.plan")
    if importlib.util.find_spec("libtpu") is not None if topology.is_tpu else has_compiler():
        try:
            return topology.described_devices(), ""
        except (RuntimeError, NotImplementedError) as error:  # of a GPU: the plugin may be of another version of jax
            why = f"{compiler} takes no description of {topology.name}: {error}"
            if topology.is_tpu:
                raise ValueError(f"--topology={topology.name}: {why}") from error
    jax.config.update("jax_num_cpu_devices", topology.devices)
    return jax.devices(), f"XLA's CPU compiler, for {topology.devices} fake devices ({why})"
