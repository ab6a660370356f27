"""Descriptions of GPUs for XLA's GPU compiler, which needs neither a GPU nor a driver then.

The extra `cuda` installs that compiler (`jax[cuda13]`). The figures are from NVIDIA's data sheets and CUDA's tables of
compute capabilities. Nothing is autotuned, so the algorithm of each matrix product is cuBLAS's first choice.
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
    """What the compiler needs to know about a GPU, apart from its memory."""

    capability: tuple[int, int]
    multiprocessors: int
    f32_lanes: int  # of each multiprocessor
    shared_bytes: int  # of each multiprocessor
    l2_bytes: int
    clock_ghz: float  # boost


_HOPPER = _Processors((9, 0), 132, 128, 228 * 1024, 50 * 2**20, 1.98)
_PROCESSORS = {"a100": _Processors((8, 0), 108, 64, 164 * 1024, 40 * 2**20, 1.41), "h100": _HOPPER, "h200": _HOPPER}
# The same for every NVIDIA GPU of these generations.
_SAME = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 * 1024, "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535, "registers_per_core_limit": 65536, "registers_per_block_limit": 65536,
}
_CUDA, _CUDNN = (12, 9, 0), (9, 10, 0)  # the versions to compile for


def has_compiler() -> bool:
    """Whether jax's CUDA plugin is installed."""
    return importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(f"jax_plugins.{plugin}") for plugin in _PLUGINS)


def described_gpus(chip: Chip, nodes: int, each: int) -> list[Any]:
    """Devices to compile for, `each` a node.

    Raises:
        RuntimeError, NotImplementedError: the compiler refuses the description, or is not installed.
    """
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # which needs a driver
    from jax.experimental import topologies

    with captured_stderr():  # warnings that there is no driver
        described = topologies.get_topology_desc(platform="cuda", topology_name="", target_config=_target(chip),
                                                 topology=f"1x{nodes}x{each}")
    return list(described.devices)


def _target(chip: Chip) -> str:
    """A stream_executor.GpuTargetConfigProto as text."""
    gpu = _PROCESSORS[chip.name]
    major, minor = gpu.capability
    card = _SAME | {
        "core_count": gpu.multiprocessors, "fpus_per_core": gpu.f32_lanes, "shared_memory_per_core": gpu.shared_bytes,
        "shared_memory_per_block_optin": gpu.shared_bytes - 1024, "l2_cache_size": gpu.l2_bytes,
        "clock_rate_ghz": gpu.clock_ghz, "memory_bandwidth": int(chip.hbm_bandwidth),
        "device_memory_size": int(chip.hbm_bytes),
    }
    fields = [f"{name}: {value}" for name, value in card.items()]
    version = "{name} {{ major: {0} minor: {1} patch: {2} }}"
    return "\n".join([
        "gpu_device_info {", *fields, f"cuda_compute_capability {{ major: {major} minor: {minor} }}", "}",
        'platform_name: "CUDA"', version.format(*_CUDA, name="runtime_version"),
        version.format(*_CUDNN, name="dnn_version_info"), f'device_description_str: "NVIDIA {chip.name.upper()}"'])
