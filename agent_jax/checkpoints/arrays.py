"""The arrays of one step, read through Orbax and checked one by one against what was recorded of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from agent_jax.checkpoints import meta as checkpoint_meta
from agent_jax.checkpoints.access import read_error
from agent_jax.checkpoints.fingerprint import fingerprint, flat, nested
from agent_jax.checkpoints.meta import ACTING, PARAMS, DamagedCheckpointError, acting_path, locate
from agent_jax.models.lora import LORA, merged
from agent_jax.runtime.distributed import all_true

T = TypeVar("T")

_REASON_LENGTH = 300  # of tensorstore's messages, which run to pages


def load(step_directory: epath.Path, abstract: Any, subtree: str) -> tuple[Any, dict[str, Any]]:
    """(tree, meta) of one step, every array checked against its fingerprint.

    Args:
        step_directory: of the step.
        abstract: the subtree as `jax.ShapeDtypeStruct`s; without shardings it goes to the first local device.
        subtree: its path in the state; "" for all of it, "acting" for the parameters to act with. Adapters that the
            step holds are merged into the parameters, unless `abstract` has them.

    Raises:
        DamagedCheckpointError: something of it is missing, or is not what was saved.
        OSError: something of it could not be read (access.py), which says nothing about it.
        ValueError: the subtree has other paths, shapes or dtypes than the checkpoint.
    """
    together = spans_processes(abstract)
    meta = _undamaged(lambda: checkpoint_meta.read(step_directory), step_directory, together=together)
    adapters = _adapters(meta, abstract) if subtree in (ACTING, PARAMS) and LORA not in abstract else {}
    if adapters:
        abstract = {**abstract, LORA: nested(adapters)}
    if subtree == ACTING:
        names = [path.removeprefix(f"{PARAMS}/") for path in meta["fingerprint"] if path.startswith(f"{PARAMS}/")]
        held = {acting_path(meta, name) for name in names}
        wanted = {acting_path(meta, name): _placed(leaf) for name, leaf in flat(abstract).items()}
    else:
        prefix = f"{subtree}/" if subtree else ""
        held = {path for path in meta["fingerprint"] if path.startswith(prefix)}
        wanted = {prefix + path: _placed(leaf) for path, leaf in flat(abstract).items()}
    recorded = {path: entry for path, entry in meta["fingerprint"].items() if path in held}
    checkpoint_meta.check_structure(recorded, wanted, step_directory)
    loaded = _undamaged(lambda: _arrays(step_directory, meta, wanted), step_directory, together=together)
    sums = fingerprint(loaded)
    if altered := [path for path, entry in recorded.items() if sums[path] != entry["sum"]]:
        raise DamagedCheckpointError(f"checkpoint {step_directory} is damaged: values do not match the fingerprint of "
                                     f"{', '.join(altered[:3])}{' and others' if len(altered) > 3 else ''}")
    tree = jax.tree.unflatten(jax.tree.structure(abstract), [loaded[path] for path in wanted])
    if adapters:
        places = {name: jax.tree.map(lambda leaf: leaf.sharding, part) for name, part in tree.items() if name != LORA}
        tree = jax.jit(functools.partial(merged, scale=meta["config"]["lora"]["scale"]), out_shardings=places)(tree)
    return tree, meta


def _adapters(meta: dict[str, Any], abstract: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The adapters that a step holds for its parameters, by path, to be on every device of these."""
    prefix = f"{PARAMS}/{LORA}/"
    sharding = next(leaf.sharding for leaf in jax.tree.leaves(abstract))
    if isinstance(sharding, jax.sharding.NamedSharding):
        sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return {path.removeprefix(prefix): jax.ShapeDtypeStruct(tuple(entry["shape"]), entry["dtype"], sharding=sharding)
            for path, entry in meta["fingerprint"].items() if path.startswith(prefix)}


def _arrays(step_directory: epath.Path, meta: dict[str, Any],
            wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The arrays of a step by path; of each, what lives on this process's devices is read."""
    located = {path: locate(meta, path) for path in wanted}
    loaded: dict[str, Any] = {}
    for item in sorted({item for item, _ in located.values()}):
        places = {place: path for path, (holder, place) in located.items() if holder == item}
        found = _item(step_directory, item, {place: wanted[path] for place, path in places.items()})
        loaded |= {path: found[place] for place, path in places.items()}
    return loaded


def _item(step_directory: epath.Path, item: str, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The arrays of one item of a step, by path in the item."""
    for attempt in (1, 2):  # an error that has passed by now may have been told as "not found"
        try:
            with context(partial=True):
                loaded = flat(ocp.load(step_directory, nested(wanted), checkpointable_name=item))
            if absent := [path for path in wanted if not isinstance(loaded.get(path), jax.Array)]:
                raise KeyError(", ".join(absent))  # a partial load passes over what it does not find
            return loaded
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # says nothing about the files
        except Exception as error:  # Orbax raises a bare Exception for a chunk that it cannot decode
            if failed := read_error(error, step_directory):
                raise failed from error
            if attempt == 2:
                cause = (type(error) is Exception and error.__cause__) or error
                reason = " ".join(f"{type(cause).__name__}: {cause}".split())  # with tensorstore's whole specification
                raise DamagedCheckpointError(
                    f"checkpoint {step_directory} is damaged: {reason[:_REASON_LENGTH]}") from error
    raise AssertionError("unreachable")


def _undamaged(read: Callable[[], T], step_directory: epath.Path, *, together: bool) -> T:
    """What `read` returns, unless a process finds the step damaged: then all that read it together do."""
    try:
        result = read()
    except DamagedCheckpointError:
        if together:
            all_true(False)
        raise
    if together and not all_true(True):
        raise DamagedCheckpointError(f"checkpoint {step_directory} is damaged: another process says why")
    return result


def spans_processes(abstract: Any) -> bool:
    """Whether the arrays are to live on devices of several processes, which then load them together."""
    return any(leaf.sharding is not None and not leaf.sharding.is_fully_addressable
               for leaf in jax.tree.leaves(abstract))


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """The leaf with a sharding that fits. Raises ValueError where an axis does not divide, before a file is read."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding.shard_shape(leaf.shape)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def context(*, partial: bool = False) -> ocp.Context:
    """Orbax's settings; `partial` for loading, which may ask for less than there is."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    made = ocp.Context()
    made.checkpointables.registry = registry
    made.array_options.saving.use_compression = False  # zstd makes weights 8% smaller, for twice the CPU time
    if partial:
        made.pytree.loading.partial_load = True
        # Each process reads its own shards without waiting for the others, so that a file that only one of them finds
        # damaged does not leave the rest at a barrier.
        made.multiprocessing_options.active_processes = {jax.process_index()}
        made.multiprocessing_options.primary_host = jax.process_index()
    return made
