"""GPUs that need not be here, described for XLA's own compiler for them.

The extra `cuda` brings that compiler (`jax[cuda13]`); it asks for neither a GPU nor a driver where it is told what it
would ask them: the processors of the card, below from NVIDIA's data sheets and CUDA's tables of compute capabilities.
Nothing is tuned by running it, so the algorithm of each product is cuBLAS's first choice.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import Any

from agent_jax.plan.chips import Chip
from agent_jax.plan.messages import captured_stderr

_PLUGINS = ("xla_cuda13", "xla_cuda12")


@dataclasses.dataclass(frozen=True)
class _Processors:
    """What the compiler must know of a card beside its memory."""

    capability: tuple[int, int]
    multiprocessors: int
    f32_lanes: int  # of each
    shared_bytes: int  # of each
    l2_bytes: int
    clock_ghz: float  # boost


_HOPPER = _Processors((9, 0), 132, 128, 228 * 1024, 50 * 2**20, 1.98)
_PROCESSORS = {"a100": _Processors((8, 0), 108, 64, 164 * 1024, 40 * 2**20, 1.41), "h100": _HOPPER, "h200": _HOPPER}
# Of every NVIDIA GPU of these generations.
_SAME = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 * 1024, "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535, "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
}
_CUDA, _CUDNN = (12, 9, 0), (9, 10, 0)  # the versions whose programs are made


def has_compiler() -> bool:
    """Whether jax's CUDA plugin is installed."""
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(f"jax_plugins.{plugin}") for plugin in _PLUGINS)


def described_gpus(chip: Chip, nodes: int, each: int) -> list[Any]:
    """Devices that can be compiled for, `each` to a node.

    Raises:
        RuntimeError, NotImplementedError: the compiler does not take the description, or there is none.
    """
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # it would ask a driver
    from jax.experimental import topologies

    with captured_stderr():  # complaints that there is no driver
        described = topologies.get_topology_desc(platform="cuda", topology_name="", target_config=_target(chip),
                                                 topology=f"1x{nodes}x{each}")
    return list(described.devices)


def _target(chip: Chip) -> str:
    """A stream_executor.GpuTargetConfigProto as text."""
    of, (major, minor) = _PROCESSORS[chip.name], _PROCESSORS[chip.name].capability
    card = _SAME | {
        "core_count": of.multiprocessors, "fpus_per_core": of.f32_lanes, "shared_memory_per_core": of.shared_bytes,
        "shared_memory_per_block_optin": of.shared_bytes - 1024, "l2_cache_size": of.l2_bytes,
        "clock_rate_ghz": of.clock_ghz, "memory_bandwidth": int(chip.hbm_bandwidth),
        "device_memory_size": int(chip.hbm_bytes),
    }
    fields = [f"{name}: {value}" for name, value in card.items()]
    version = "{name} {{ major: {0} minor: {1} patch: {2} }}"
    return "\n".join([
        "gpu_device_info {", *fields, f"cuda_compute_capability {{ major: {major} minor: {minor} }}", "}",
        'platform_name: "CUDA"', version.format(*_CUDA, name="runtime_version"),
        version.format(*_CUDNN, name="dnn_version_info"), f'device_description_str: "NVIDIA {chip.name.upper()}"'])
