"""The devices that a plan is compiled for: those of the chip's own compiler, or fake CPU devices.

The compiler is libtpu for TPUs and jax's CUDA plugin for GPUs; neither needs a chip.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import jax

from agent_jax.plan.gpu_target import has_compiler
from agent_jax.plan.topology import Topology
from agent_jax.runtime.extras import install


def prepare(topology: Topology) -> tuple[list[Any], str]:
    """Devices to compile for, and why the plan is an estimate ("" if it is not).

    Call it before JAX is used: it sets the number of CPU devices.

    Raises:
        ValueError: libtpu does not answer; another process may use it.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # programs from there come without warnings
    compiler, extra = ("libtpu", "tpu") if topology.is_tpu else ("the compiler for GPUs", "cuda")
    why = (f"{compiler} is not installed here: python -m venv .venv-{extra} && .venv-{extra}/bin/{install(extra)}, "
           f"then .venv-{extra}/bin/python -m agent_jax.plan")
    if importlib.util.find_spec("libtpu") is not None if topology.is_tpu else has_compiler():
        try:
            return topology.described_devices(), ""
        except (RuntimeError, NotImplementedError) as error:  # a GPU plugin may be of another version
            why = f"{compiler} takes no description of {topology.name}: {error}"
            if topology.is_tpu:
                raise ValueError(f"--topology={topology.name}: {why}") from error
    jax.config.update("jax_num_cpu_devices", topology.devices)
    return jax.devices(), f"XLA's CPU compiler, for {topology.devices} fake devices ({why})"
