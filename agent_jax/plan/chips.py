"""Peak figures of accelerators from their data sheets, for rooflines; not measured."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device: a TPU chip (both TensorCores of v4 and v5p together) or a GPU."""

    name: str
    bf16_flops: float  # a second, dense
    f32_flops: float  # of float32 inputs at JAX's default precision: one bf16 pass on a TPU, TF32 on a GPU
    hbm_bytes: float
    hbm_bandwidth: float  # bytes a second
    link_bandwidth: float  # bytes a second in one direction: of one ICI link, or of all NVLinks of a GPU
    network_bandwidth: float  # bytes a second and chip in one direction, between slices or nodes
    source: str


_CLOUD = "cloud.google.com/tpu/docs"
CHIPS = {chip.name: chip for chip in (
    # 6 links of 50 GB/s each way: Jouppi et al., ISCA 2023, table 4. Network: 200 Gbit/s a host of 4 chips, as v5p.
    Chip("v4", 275e12, 275e12, 32 * GIB, 1.2e12, 50e9, 6.25e9, f"{_CLOUD}/v4; arXiv 2304.01433 for the links"),
    # 1,200 GB/s in both directions over 6 links; 200 Gbit/s a host of 4 chips.
    Chip("v5p", 459e12, 459e12, 95e9, 2.765e12, 100e9, 6.25e9, f"{_CLOUD}/v5p"),
    # 400 GB/s in both directions over 4 links; 6.4 Tbit/s a pod of 256 chips.
    Chip("v5e", 197e12, 197e12, 16 * GIB, 819e9, 50e9, 3.125e9, f"{_CLOUD}/v5e"),
    # 800 GB/s in both directions over 4 links; 4 x 200 Gbit/s a host of 8 chips.
    Chip("v6e", 918e12, 918e12, 32 * GIB, 1.638e12, 100e9, 12.5e9, f"{_CLOUD}/v6e"),
    # Without sparsity. NVLink's 600 and 900 GB/s are both directions; a network card of 200 or 400 Gbit/s a GPU (DGX).
    Chip("a100", 312e12, 156e12, 80e9, 2.039e12, 300e9, 25e9, "NVIDIA A100 80GB SXM data sheet; DGX A100 data sheet"),
    Chip("h100", 989e12, 494e12, 80e9, 3.35e12, 450e9, 50e9, "NVIDIA H100 SXM data sheet; DGX H100 data sheet"),
    Chip("h200", 989e12, 494e12, 141e9, 4.8e12, 450e9, 50e9, "NVIDIA H200 SXM data sheet; DGX H200 data sheet"),
)}
