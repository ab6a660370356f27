"""Where every array lives: a mesh of four axes and one ordered table of (path pattern, PartitionSpec).

    axis      the rows of a batch     parameters and both Adam moments
    replica   split                   copied: one a slice, so that only gradients cross the network between slices, once
                                      for each microbatch
    data      split                   copied
    fsdp      split                   split along a width; gathered layer by layer where they are used
    tensor    copied                  split along heads, MLP width and vocabulary; activations are summed over it

The table is read from the top and the first pattern that ends a path decides, so `params/language/token_embedding` and
`opt_state/.../mu/language/token_embedding` go the same way. The last row is the default: copied to every device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agent_jax.config import Config, MeshConfig, TrainConfig

AXES = ("replica", "data", "fsdp", "tensor")  # from the slowest network to the fastest
ROW_AXES = AXES[:3]
ROWS = PartitionSpec(ROW_AXES)  # of a batch: every leaf is split along its first dimension

# Leaves under `blocks` carry a leading axis of layers, which the scan walks over and which is never split.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # By vocabulary only: split along the width as well, a lookup makes XLA copy its result whole to every device.
    (r"token_embedding", PartitionSpec("tensor", None)),
    (r"position_embedding", PartitionSpec()),  # 197 and 2,050 rows divide by nothing, and they are small
    (r"blocks/.*/qkv/kernel", PartitionSpec(None, "fsdp", None, "tensor")),
    (r"blocks/.*/qkv/bias", PartitionSpec(None, None, "tensor")),
    (r"blocks/.*/out/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks/mlp/up/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/mlp/up/bias", PartitionSpec(None, "tensor")),
    (r"blocks/mlp/down/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"patch_embedding/kernel", PartitionSpec(None, "fsdp")),
    (r"(connector|mae/input|mae/prediction)/kernel", PartitionSpec("fsdp", None)),
    (r".*", PartitionSpec()),  # default: norms, remaining biases, single tokens, counters
)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh (replica, data, fsdp, tensor) over all devices of all processes, or over those given.

    Where the devices are of several slices (TPU slices; GPU nodes), which a slower network joins, `replica` runs over
    slices first, then `data`, then `fsdp`, and what is left of each axis lies within a slice.

    Raises:
        ValueError: if the axes do not multiply to the number of devices, `tensor` would have to leave a slice, or the
            axes do not fit the torus that a TPU slice is.
    """
    devices = jax.devices() if devices is None else devices
    wanted = [getattr(config, axis) for axis in AXES]
    said = ", ".join(f"config.mesh.{axis}={size}" for axis, size in zip(AXES, wanted, strict=True))
    if wanted.count(-1) > 1 or any(size != -1 and size < 1 for size in wanted):
        raise ValueError(f"{said}: each must be at least 1, and one of them may be -1 to take what is left")
    known = math.prod(size for size in wanted if size != -1)
    shape = [len(devices) // known if size == -1 else size for size in wanted]
    if math.prod(shape) != len(devices):
        raise ValueError(f"{said} ask for {'a multiple of ' if -1 in wanted else ''}{known} devices, but there are "
                         f"{len(devices)} ({devices[0].platform}); change them so that they multiply to {len(devices)}")
    between = between_slices(shape, devices)
    try:
        arranged = _arranged(shape, between, devices)
    except NotImplementedError as error:
        raise ValueError(f"{said} do not fit the {len(devices)} {devices[0].device_kind} as they are wired: {error}. "
                         "Take axes that are products of the sides of a slice") from error
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: Sequence[int], between: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices in the order in which neighbours of an axis are close to each other."""
    if math.prod(between) == 1:
        return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices).devices
    within = [size // slices for size, slices in zip(shape, between, strict=True)]
    # As jax.make_mesh has it for one slice: these chips lie in a plane, along whose two axes few meshes would fit.
    split = devices[0].device_kind in ("TPU v5 lite", "TPU v5e")
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=split)


def slice_count(devices: Sequence[Any]) -> int:
    """How many slices the devices are of; 1 where the platform knows none."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def between_slices(shape: Sequence[int], devices: Sequence[Any]) -> list[int]:
    """The part of each axis that runs over slices."""
    left, between = slice_count(devices), []
    for axis, size in zip(AXES, shape, strict=True):
        between.append(1 if axis == "tensor" else math.gcd(left, size))
        left //= between[-1]
    if left > 1:
        raise ValueError(f"the devices are of {slice_count(devices)} slices, and config.mesh.tensor={shape[-1]} would "
                         "have to leave its slice: set config.mesh.replica to the number of slices, and the other axes "
                         f"so that they multiply to the {len(devices) // slice_count(devices)} devices of one")
    return between


def row_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def microbatches_of_step(train: TrainConfig, mesh: Mesh) -> int:
    """How many microbatches a step takes on this mesh.

    Returns:
        `config.train.accumulation`; or where `rows_per_device` is set, the least number, a divisor of a device's rows,
        that leaves at most so many of them at a time: the batch stays what it is, whatever the number of chips.
    """
    rows = train.batch_size // row_shards(mesh)
    if not train.rows_per_device or not rows:
        return train.accumulation
    return next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= train.rows_per_device)


def check_divides(config: Config, mesh: Mesh) -> None:
    """Refuse a model or a batch that does not divide over the mesh, all reasons in one message.

    Raises:
        ValueError: one line per field that does not divide, with its value and the axis.
    """
    model, train = config.model, config.train
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    rules = [("config.train.batch_size", train.batch_size, row_shards(mesh) * train.accumulation,
              f"{_row_axes(mesh)} x config.train.accumulation {train.accumulation}")]
    for name, part in (("vision", model.vision), ("language", model.language), ("mae", model.mae)):
        rules += [(f"config.model.{name}.heads", part.heads, tensor, f"mesh tensor {tensor}"),
                  (f"config.model.{name}.mlp_width", part.mlp_width, tensor, f"mesh tensor {tensor}"),
                  (f"config.model.{name}.width", part.width, fsdp, f"mesh fsdp {fsdp}")]
    multiple = model.language.vocabulary_multiple
    table = model.language.vocabulary_rows or multiple  # 0 until the vocabulary is known
    rules.append(("config.model.language.vocabulary_multiple", table, tensor, f"table rows; mesh tensor {tensor}"))
    wrong = [f"{name}={value} does not divide by {divisor} ({reason})"
             for name, value, divisor, reason in rules if value % divisor]
    if wrong:
        raise ValueError("the run does not divide over the mesh:\n  " + "\n  ".join(wrong))


def _row_axes(mesh: Mesh) -> str:
    """The axes that split rows, for a message: those beside replica always, that one where it does."""
    axes = ROW_AXES if mesh.shape["replica"] > 1 else ROW_AXES[1:]
    return "mesh " + " x ".join(f"{axis} {mesh.shape[axis]}" for axis in axes)


def rule_for(path: str) -> int:
    """The index in `RULES` of the row that decides for a path such as `vision/blocks/mlp/up/kernel`."""
    return next(i for i, (pattern, _) in enumerate(RULES) if re.search(rf"(?:^|/)(?:{pattern})$", path))


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as names joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """A NamedSharding for each leaf of parameters, optimizer state or train state.

    Raises:
        ValueError: if a leaf does not divide over the axes that its rule names.
    """

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = path_name(key_path)
        spec = RULES[rule_for(path)][1]
        if len(spec) > len(leaf.shape):
            raise ValueError(f"{path} of shape {leaf.shape}: its sharding rule {spec} is for {len(spec)} dimensions")
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise ValueError(f"{path} of shape {leaf.shape}: {size} does not divide by mesh {axis} "
                                 f"{mesh.shape[axis]}; choose another config.mesh.{axis}")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every leaf of a Batch: rows over (replica, data, fsdp)."""
    return NamedSharding(mesh, ROWS)


def rows_here(mesh: Mesh) -> tuple[int, int]:
    """Which part of each batch this process loads, as (index, count): the index-th of `count` equal parts.

    Processes whose devices hold the same rows (a tensor axis across hosts) load the same part.

    Raises:
        ValueError: the rows of one process overlap with those of another without being the same.
    """
    held: dict[int, set[int]] = {}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((mesh.size,)).items():
        held.setdefault(device.process_index, set()).add(rows.start or 0)
    parts = sorted({tuple(sorted(starts)) for starts in held.values()})
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) > len({row for part in parts for row in part}):
        raise ValueError(f"mesh {dict(mesh.shape)} over {len(held)} processes: the rows of a batch cannot be shared "
                         "out among them; choose axes after data and fsdp whose product divides a process's devices "
                         "or is a multiple of them")
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def constrain_rows(x: jax.Array) -> jax.Array:
    """`x` split by rows as the batch is and whole in its other dimensions; `x` itself where no mesh is set.

    The residual stream is pinned by it: else XLA may take over the split of a kernel's width, and copy activations to
    every device to get back.
    """
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, ROWS)


def several_devices() -> bool:
    """Whether what is traced is for a mesh of more than one."""
    return jax.sharding.get_abstract_mesh().size > 1


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """A Batch of NumPy arrays, this process's rows of it, as global arrays on the mesh.

    Raises:
        ValueError: if the rows do not divide over this process's share of the mesh.
    """
    shards = row_shards(mesh)
    rows = jax.tree.leaves(batch)[0].shape[0] * rows_here(mesh)[1]
    if rows % shards:
        raise ValueError(f"a batch of {rows} rows does not divide over {_row_axes(mesh)} = {shards}; choose a batch "
                         f"size that is a multiple of {shards}")
    sharding = batch_sharding(mesh)
    # With several processes the guard of the training loop takes this transfer, which is meant, for one by accident.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def on_host(tree: Any) -> Any:
    """A tree of global arrays as whole NumPy arrays, on every process. All processes call it together."""
    return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)
