"""What a PyTorch file's pickle says of its tensors, read without executing it.

    opcodes, acted out by plain_pickle.py -> torch's names, which mean something here -> name -> TensorHeader

No module is imported and nothing is called by a name from the file: a global is a name until it is held against
GLOBALS, REDUCE knows three of them, BUILD none but OrderedDict. Everything else is refused by its name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from agent_jax.plain_pickle import PickleMachine, RefusedPickleError, kind_of

__all__ = ["RefusedPickleError", "Storage", "TensorHeader", "read_tensors"]

MAX_OPCODES = 500_000  # 30 a tensor: 16,000 tensors; a pickle that says more than that is no state dict
MAX_AXES = 8

# Storage classes of torch: dtype as safetensors names it, bytes of a value.
STORAGES = {
    "DoubleStorage": ("F64", 8), "FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1),
}
ORDERED_DICT = "collections.OrderedDict"
REBUILD_TENSOR, REBUILD_PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
GLOBALS = {ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, *(f"torch.{name}" for name in STORAGES)}


@dataclasses.dataclass(frozen=True)
class Storage:
    """Values of one entry of the archive."""

    key: str
    dtype: str
    values: int

    @property
    def bytes(self) -> int:
        """Length of the entry."""
        return self.values * next(size for name, size in STORAGES.values() if name == self.dtype)


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """A view of a storage: the first value, and per axis size and stride, in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str

    @property
    def pickle_name(self) -> str:
        """How errors name it."""
        return self.name


def read_tensors(content: bytes) -> dict[str, TensorHeader]:
    """The tensors of a state dict, in its order; of a training checkpoint, those of its `state_dict`.

    Args:
        content: of data.pkl.

    Raises:
        RefusedPickleError: anything but a flat dict from names to tensors, alone or under `state_dict`.
    """
    tensors = _Machine().run(content)
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


class _Machine(PickleMachine):
    """What torch's names mean to us."""

    def __init__(self) -> None:
        super().__init__(MAX_OPCODES, keys=(str, int))  # an optimizer numbers its parameters
        self.storages: dict[str, Storage] = {}

    def find_global(self, name: str) -> _Global:
        if name not in GLOBALS:
            raise RefusedPickleError(f"its pickle asks for {name[:200]!r}, which is no tensor; only tensors are read, "
                                     "and nothing is executed")
        return _Global(name)

    def reduce(self, function: Any, arguments: Any) -> Any:
        """One of three things that are known to be harmless."""
        name = function.name if isinstance(function, _Global) else ""
        if name == ORDERED_DICT and arguments == ():
            return {}
        if name == REBUILD_TENSOR and isinstance(arguments, tuple) and len(arguments) in (6, 7):
            return _tensor(*arguments[:4])
        if name == REBUILD_PARAMETER and isinstance(arguments, tuple) and len(arguments) == 3:
            if not isinstance(arguments[0], TensorHeader):
                raise RefusedPickleError(f"its pickle makes a parameter of a {kind_of(arguments[0])}")
            return arguments[0]
        raise RefusedPickleError(f"its pickle calls {name or kind_of(function)} with arguments that torch.save never "
                                 "writes")

    def build(self, target: Any, state: Any) -> Any:
        """The attributes of an OrderedDict, which hold versions of modules; nothing is set."""
        del state
        if not isinstance(target, dict):
            raise RefusedPickleError(f"its pickle sets the state of a {kind_of(target)}")
        return target

    def persistent_id(self, value: Any) -> Storage:
        """("storage", class, key, device, number of values)."""
        match value:
            case ("storage", _Global(name=name), str(key), str(), int(values)) if (
                    name.removeprefix("torch.") in STORAGES and type(values) is int and values >= 0):
                storage = Storage(key, STORAGES[name.removeprefix("torch.")][0], values)
            case _:
                raise RefusedPickleError("its pickle refers to something that is no storage of known type and size")
        if self.storages.setdefault(key, storage) != storage:
            raise RefusedPickleError(f"its pickle describes storage {key[:100]!r} in two ways")
        return storage


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorHeader:
    """A tensor that lies within its storage."""
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise RefusedPickleError("its pickle describes a tensor by something else than a storage and whole numbers")
    if len(shape) != len(strides) or len(shape) > MAX_AXES:  # before they are looked at: many may share long ones
        raise RefusedPickleError(f"its pickle describes a tensor of {len(shape)} sizes and {len(strides)} strides")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (offset, *shape, *strides)):
        raise RefusedPickleError("its pickle describes a tensor by something else than a storage and whole numbers")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (0 in shape and offset > storage.values) or (0 not in shape and last >= storage.values):
        raise RefusedPickleError(f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} "
                                 f"reaches to value {last:,} of storage {storage.key[:100]!r}, which has "
                                 f"{storage.values:,}")
    return TensorHeader(storage, offset, shape, strides)
