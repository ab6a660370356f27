"""What a name such as `v4-32`, `v6e-8`, `h100-16` or `2xv4-32` stands for, and how fast its devices reach each other.

    v4-32     TPU v4 and v5p count TensorCores, two a chip: 16 chips in a torus of 2 x 2 x 4
    v5e-16    TPU v5e and v6e count chips: 4 x 4
    h100-16   GPUs, in nodes of 8
    2xv4-32   two slices of v4-32, which reach each other over the network

Only libtpu knows a TPU's devices, and GPUs can be described to their compiler (gpu_target.py); without these, what
matters of them is where each stands in the order.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

import numpy as np

from agent_jax.plan.chips import CHIPS, Chip
from agent_jax.plan.gpu_target import described_gpus
from agent_jax.plan.messages import captured_stderr

# Shapes that Google offers, by number of chips, so that names lead to the shape one gets when one names no other.
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CORES = {"v4": 2, "v5p": 2, "v5e": 1, "v6e": 1}  # that a name counts, a chip
_NODE = 8  # GPUs joined by NVLink
_GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A set of devices that a run may ask for."""

    name: str
    chip: Chip
    slices: int  # joined by the network; 1 for GPUs, whose nodes are
    shape: tuple[int, ...]  # chips of a slice by dimension of its torus; (GPUs,) for GPUs

    @property
    def is_tpu(self) -> bool:
        """TPU or GPU."""
        return self.chip.name in _CORES

    @property
    def devices(self) -> int:
        """Of all slices, as JAX counts them: chips."""
        return self.slices * math.prod(self.shape)

    @property
    def platform(self) -> str:
        """As a `jax.Device` of it says."""
        return "tpu" if self.is_tpu else "gpu"

    @property
    def hosts(self) -> int:
        """Machines, of 4 chips (TPU), as a v5e or v6e of 8 is offered too, or of 8 (GPU)."""
        return max(1, self.devices // (4 if self.is_tpu else _NODE))

    def described_devices(self) -> list[Any]:
        """Devices of the chip's own compiler that can be compiled for, though none is here.

        Raises:
            ModuleNotFoundError: without libtpu.
            NotImplementedError: without jax's CUDA plugin.
        """
        if not self.is_tpu:
            return described_gpus(self.chip, self.hosts, self.devices // self.hosts)
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server is there to be asked
        from jax.experimental import topologies

        torus = self.chip.name in ("v4", "v5p")
        host = (2, 2, 1) if len(self.shape) == 3 or math.prod(self.shape) >= 4 else (1, 1, 1)
        with captured_stderr():  # libtpu complains that this machine is no TPU
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.chip.name}:{'x'.join(map(str, self.shape))}",
                chip_config_name="megacore" if torus else "default", chips_per_host_bounds=host,
                num_slices=self.slices)
        return list(described.devices)

    def bandwidth(self, groups: np.ndarray, devices: Any) -> float:
        """Bytes a second in one direction that a device of a collective has towards its group.

        TPU: a ring along every dimension of the torus in which the devices of a group differ, in both directions where
        the dimension has more than two chips; the network where they lie in different slices. GPU: NVLink in a node,
        the network card between nodes. Links are taken as unshared, so it is the most there can be.

        Args:
            groups: int (groups, size), places in the mesh.
            devices: of the mesh, flat: those of libtpu, or stand-ins of the same number.
        """
        members = [devices[place] for place in groups[0]]
        places = groups[0]
        if not self.is_tpu:
            return self.chip.link_bandwidth if len(set(places // _NODE)) == 1 else self.chip.network_bandwidth
        per_slice = math.prod(self.shape)
        where = [getattr(device, "slice_index", None) for device in members]
        slices = set(where) if None not in where else set((places // per_slice).tolist())
        if len(slices) > 1:
            return self.chip.network_bandwidth
        coords = np.asarray([_coords(device, place % per_slice, self.shape)
                             for device, place in zip(members, places.tolist(), strict=True)])
        rings = [size for axis, size in enumerate(self.shape) if len(set(coords[:, axis])) > 1]
        return self.chip.link_bandwidth * max(1, sum(2 if size > 2 else 1 for size in rings))


def _coords(device: Any, place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Where a device is in the torus: its own word, or in order of its number where it is a stand-in."""
    known = getattr(device, "coords", None)
    return tuple(known[: len(shape)]) if known is not None else tuple(int(n) for n in np.unravel_index(place, shape))


def known_topologies() -> list[str]:
    """Every name that `find_topology` takes, for one slice."""
    tpus = [f"{chip}-{cores * chips}" for chip, cores in _CORES.items()
            for chips in (_CUBES if cores == 2 else _SQUARES)]
    return [*tpus, *(f"{chip}-{count}" for chip in CHIPS if chip not in _CORES for count in _GPUS)]


def find_topology(name: str) -> Topology:
    """The topology of a name.

    Raises:
        ValueError: for a name that is none, with those there are.
    """
    found = re.fullmatch(r"(?:(\d+)x)?(\w+)-(\d+)", name)
    if found and f"{found[2]}-{found[3]}" in known_topologies():
        slices, chip, count = int(found[1] or 1), found[2], int(found[3])
        if chip not in _CORES and slices == 1:
            return Topology(name, CHIPS[chip], 1, (count,))
        if chip in _CORES and slices >= 1:
            shapes = _CUBES if _CORES[chip] == 2 else _SQUARES
            shape = tuple(int(size) for size in shapes[count // _CORES[chip]].split("x"))
            return Topology(name, CHIPS[chip], slices, shape)
    by_chip = {chip: ", ".join(known.partition("-")[2] for known in known_topologies() if known.startswith(f"{chip}-"))
               for chip in CHIPS}
    lines = "\n".join(f"  {chip}-N: N of {counts}" for chip, counts in by_chip.items())
    raise ValueError(f"--topology={name}: not known; expected one of\n{lines}\nv4 and v5p count TensorCores, two a "
                     "chip; several TPU slices are written 2xv4-32")
