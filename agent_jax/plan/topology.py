"""Topologies by name, such as `v4-32` or `h100-16`, and the bandwidth between their devices.

    v4-32     TPU v4 and v5p count TensorCores, two a chip: 16 chips in a torus of 2 x 2 x 4
    v5e-16    TPU v5e and v6e count chips: 4 x 4
    h100-16   GPUs, in nodes of 8
    2xv4-32   two slices of v4-32, joined by the network

TPU slices are tori of chips; GPUs are joined by NVLink within a node.
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

# The default shapes of Google Cloud, by number of chips.
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CORES = {"v4": 2, "v5p": 2, "v5e": 1, "v6e": 1}  # TensorCores a chip, as names count them
_NODE = 8  # GPUs joined by NVLink
_GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A named set of devices."""

    name: str
    chip: Chip
    slices: int  # joined by the network; 1 for GPUs
    shape: tuple[int, ...]  # chips of a slice by dimension of its torus; (GPUs,) for GPUs

    @property
    def is_tpu(self) -> bool:
        """Whether these are TPUs; else GPUs."""
        return self.chip.name in _CORES

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def platform(self) -> str:
        """The platform of its `jax.Device`s."""
        return "tpu" if self.is_tpu else "gpu"

    @property
    def hosts(self) -> int:
        """Machines, of 4 TPU chips or 8 GPUs."""
        return max(1, self.devices // (4 if self.is_tpu else _NODE))

    def described_devices(self) -> list[Any]:
        """Devices to compile for with the chip's own compiler; no chip is needed.

        Raises:
            ModuleNotFoundError: libtpu is not installed.
            NotImplementedError: jax's CUDA plugin is not installed.
        """
        if not self.is_tpu:
            return described_gpus(self.chip, self.hosts, self.devices // self.hosts)
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server
        from jax.experimental import topologies

        torus = self.chip.name in ("v4", "v5p")
        host = (2, 2, 1) if len(self.shape) == 3 or math.prod(self.shape) >= 4 else (1, 1, 1)
        with captured_stderr():  # libtpu warns that this machine is not a TPU
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.chip.name}:{'x'.join(map(str, self.shape))}",
                chip_config_name="megacore" if torus else "default", chips_per_host_bounds=host,
                num_slices=self.slices)
        return list(described.devices)

    def bandwidth(self, groups: np.ndarray, devices: Any) -> float:
        """An upper bound of a device's bandwidth towards its group, in bytes a second in one direction.

        TPU: a ring along every dimension of the torus in which the devices of a group differ, in both directions where
        the dimension has more than two chips; the network between slices. GPU: NVLink in a node, the network card
        between nodes. Links are assumed to be unshared.

        Args:
            groups: int (groups, size), indices in the mesh.
            devices: of the mesh, flat: those of libtpu, or fake ones of the same number.
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
    """The coordinates of a device in the torus; those of a fake device follow its index."""
    known = getattr(device, "coords", None)
    return tuple(known[: len(shape)]) if known is not None else tuple(int(n) for n in np.unravel_index(place, shape))


def known_topologies() -> dict[str, Topology]:
    """The topologies of one slice, by name."""
    tpus = [(f"{chip}-{cores * chips}", chip, tuple(int(size) for size in shape.split("x")))
            for chip, cores in _CORES.items() for chips, shape in (_CUBES if cores == 2 else _SQUARES).items()]
    gpus = [(f"{chip}-{count}", chip, (count,)) for chip in CHIPS if chip not in _CORES for count in _GPUS]
    return {name: Topology(name, CHIPS[chip], 1, shape) for name, chip, shape in [*tpus, *gpus]}


def find_topology(name: str) -> Topology:
    """The topology of a name.

    Raises:
        ValueError: an unknown name; lists the known ones.
    """
    known, prefix = known_topologies(), re.match(r"(\d+)x", name)
    slices, slice_name = int(prefix[1]) if prefix else 1, name[prefix.end() :] if prefix else name
    if slice_name in known and slices and (slices == 1 or known[slice_name].is_tpu):
        return dataclasses.replace(known[slice_name], name=name, slices=slices)
    by_chip = {chip: ", ".join(one.partition("-")[2] for one in known if one.startswith(f"{chip}-")) for chip in CHIPS}
    lines = "\n".join(f"  {chip}-N: N of {counts}" for chip, counts in by_chip.items())
    raise ValueError(f"--topology={name}: unknown; expected one of\n{lines}\nv4 and v5p count TensorCores, two a "
                     "chip; write several TPU slices as 2xv4-32")
