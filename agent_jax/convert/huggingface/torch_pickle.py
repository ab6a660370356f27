"""The tensors that a PyTorch file's pickle describes, read without executing it.

plain_pickle.py reads it, with the names of torch that `_FUNCTIONS` holds.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

from agent_jax.plain_pickle import Global, PlainUnpickler, RefusedPickleError, kind_of

__all__ = ["RefusedPickleError", "Storage", "TensorHeader", "read_tensors"]

MAX_OPCODES = 500_000  # 30 a tensor, so 16,000 tensors
MAX_AXES = 8

# Storage classes of torch: dtype as safetensors names it, bytes of a value.
STORAGES = {
    "DoubleStorage": ("F64", 8), "FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1),
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """The values of one entry of the archive."""

    key: str
    dtype: str
    values: int

    @property
    def bytes(self) -> int:
        """Length of the entry."""
        return self.values * next(size for name, size in STORAGES.values() if name == self.dtype)


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """A view of a storage: offset, and size and stride of each axis, in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(content: bytes) -> dict[str, TensorHeader]:
    """The tensors of a state dict, in its order; of a training checkpoint, those of its `state_dict`.

    Args:
        content: of data.pkl.

    Raises:
        RefusedPickleError: anything but a flat dict from names to tensors, alone or under `state_dict`.
    """
    tensors = _StateDictUnpickler(content).load()
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict):
        raise RefusedPickleError(f"holds a {kind_of(tensors)}, expected a state dict: a dict from names to tensors")
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise RefusedPickleError(f"its pickle has a dict with a {kind_of(name)} as key, expected names")
        if not isinstance(value, TensorHeader):
            raise RefusedPickleError(f"holds a {kind_of(value)} under {name[:100]!r}, expected a tensor")
    return tensors


class _StateDictUnpickler(PlainUnpickler):
    """Reads a state dict, or a training checkpoint, whose optimizer numbers its parameters."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), _FUNCTIONS, MAX_OPCODES, keys=(str, int))
        self.storages: dict[str, Storage] = {}

    def build(self, target: Any, state: Any) -> Any:
        """An OrderedDict as it is: its attributes hold versions of modules."""
        return target if isinstance(target, dict) else super().build(target, state)

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that ("storage", class, key, device, number of values) names."""
        match pid:
            case ("storage", Global(name=name), str(key), str(), int(values)) if (
                    name.removeprefix("torch.") in STORAGES and type(values) is int and values >= 0):
                storage = Storage(key, STORAGES[name.removeprefix("torch.")][0], values)
            case _:
                raise RefusedPickleError("its pickle has a reference that is not a storage of known type and size")
        if self.storages.setdefault(key, storage) != storage:
            raise RefusedPickleError(f"its pickle describes storage {key[:100]!r} in two ways")
        return storage


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any,
            metadata: Any = None) -> TensorHeader:
    """torch._utils._rebuild_tensor_v2: a tensor that lies within its storage."""
    del requires_grad, hooks, metadata
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise RefusedPickleError("its pickle describes a tensor by something else than a storage and whole numbers")
    if len(shape) != len(strides) or len(shape) > MAX_AXES:  # before iterating: many tensors may share long ones
        raise RefusedPickleError(f"its pickle describes a tensor of {len(shape)} sizes and {len(strides)} strides")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (offset, *shape, *strides)):
        raise RefusedPickleError("its pickle describes a tensor by something else than a storage and whole numbers")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (0 in shape and offset > storage.values) or (0 not in shape and last >= storage.values):
        raise RefusedPickleError(f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} "
                                 f"reaches to value {last:,} of storage {storage.key[:100]!r}, which has "
                                 f"{storage.values:,}")
    return TensorHeader(storage, offset, shape, strides)


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> TensorHeader:
    """torch._utils._rebuild_parameter: the tensor itself."""
    del requires_grad, hooks
    if not isinstance(tensor, TensorHeader):
        raise RefusedPickleError(f"its pickle makes a parameter of a {kind_of(tensor)}")
    return tensor


_FUNCTIONS: dict[str, Callable[..., Any] | None] = {
    **dict.fromkeys((f"torch.{name}" for name in STORAGES), None), "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _tensor, "torch._utils._rebuild_parameter": _parameter}
