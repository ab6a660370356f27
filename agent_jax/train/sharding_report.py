"""What a mesh makes of a run, in numbers and in words: bytes of each part of a state, rows of a step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from agent_jax.config import TrainConfig
from agent_jax.runtime.sharding import AXES, between_slices, microbatches_of_step, path_name, row_shards, slice_count


@dataclasses.dataclass(frozen=True)
class PartBytes:
    """The size of one part of a state, e.g. `params/vision`."""

    part: str
    elements: int
    bytes: int
    bytes_per_device: int


def bytes_by_part(tree: Any, shardings: Any, depth: int = 2) -> list[PartBytes]:
    """Sizes by the first `depth` names of the path, in the order of the tree."""
    parts: dict[str, tuple[int, int, int]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (key_path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        part = "/".join(path_name(key_path).split("/")[:depth])
        elements, width = math.prod(leaf.shape), np.dtype(leaf.dtype).itemsize
        local = math.prod(sharding.shard_shape(leaf.shape)) * width
        before = parts.get(part, (0, 0, 0))
        parts[part] = (before[0] + elements, before[1] + elements * width, before[2] + local)
    return [PartBytes(part, *sizes) for part, sizes in parts.items()]


def mesh_lines(mesh: Mesh, train: TrainConfig) -> str:
    """The mesh and the batch arithmetic, as lines to print at the top of a log."""
    devices = list(mesh.devices.flat)
    slices, shards, count = slice_count(devices), row_shards(mesh), microbatches_of_step(train, mesh)
    over = ", ".join(f"{axis} {size}" for axis, size in
                     zip(AXES, between_slices(list(mesh.shape.values()), devices), strict=True) if size > 1)
    between = f", {slices} slices ({over} between them)" if slices > 1 else ""
    limit = f" (at most {train.rows_per_device} a device)" if train.rows_per_device else ""
    processes = len({device.process_index for device in devices})
    return "\n".join([
        f"mesh: {dict(mesh.shape)} over {len(devices)} {devices[0].platform} device(s), {processes} process(es)"
        f"{between}",
        f"batch: {train.batch_size} rows = {shards} shard(s) x {train.batch_size // shards // count} rows{limit} x "
        f"{count} microbatch(es)",
    ])


def bytes_table(parts: Sequence[PartBytes]) -> str:
    """`bytes_by_part` as lines to print, with a total."""
    total = PartBytes("total", sum(part.elements for part in parts), sum(part.bytes for part in parts),
                      sum(part.bytes_per_device for part in parts))
    lines = [f"{'part':<28}{'elements':>16}{'MiB':>12}{'MiB a device':>14}"]
    lines += [f"{row.part:<28}{row.elements:>16,}{row.bytes / 2**20:>12,.1f}{row.bytes_per_device / 2**20:>14,.1f}"
              for row in (*parts, total)]
    return "\n".join(lines)
