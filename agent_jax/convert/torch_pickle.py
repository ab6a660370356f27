"""What a PyTorch file's pickle says of its tensors, read without executing it.

    opcodes (pickletools, which only takes them apart) -> the few that torch.save writes for tensors, acted out here
    -> name -> TensorHeader

No module is imported and nothing is called by a name from the file: a global is a name until it is held against
GLOBALS, REDUCE knows three of them, BUILD none but OrderedDict. Everything else is refused by its name.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

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


class RefusedPickleError(ValueError):
    """The pickle is damaged, or holds something besides tensors; the text says what, the reader adds the file."""


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


class _Mark:
    """Where the items of a tuple, list or dict begin on the stack."""


MARK = _Mark()


def read_tensors(content: bytes) -> dict[str, TensorHeader]:
    """The tensors of a state dict, in its order.

    Args:
        content: of data.pkl.

    Raises:
        RefusedPickleError: anything but a flat dict from names to tensors.
    """
    machine = _Machine()
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(content)):
            if number >= MAX_OPCODES:
                raise RefusedPickleError(f"its pickle has more than {MAX_OPCODES:,} opcodes, more than a state dict")
            if opcode.name not in _ACTIONS:
                raise RefusedPickleError(f"its pickle has the opcode {opcode.name} at byte {position}, which no state "
                                         "dict of tensors needs")
            _ACTIONS[opcode.name](machine, argument)
    except RefusedPickleError:
        raise
    except (ValueError, LookupError, TypeError) as error:
        raise RefusedPickleError(f"its pickle is damaged ({type(error).__name__})") from error
    tensors = machine.stack.pop() if len(machine.stack) == 1 else None
    if not isinstance(tensors, dict):
        raise RefusedPickleError(f"holds a {_kind(tensors)}, expected a state dict: a dict from names to tensors")
    for name, value in tensors.items():
        if not isinstance(value, TensorHeader):
            raise RefusedPickleError(f"holds a {_kind(value)} under {name[:100]!r}, expected a tensor")
    return tensors


def _kind(value: Any) -> str:
    """Never the value itself: a small pickle can describe one that prints without end."""
    return value.name if isinstance(value, _Global) else type(value).__name__


class _Machine:
    """Stack and memo, and what the opcodes do to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise RefusedPickleError("its pickle is damaged (a mark where a value should be)")
        return value

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def push_tuple(self, length: int) -> None:
        self.push(tuple([self.pop() for _ in range(length)][::-1]))

    def find_global(self, name: str) -> None:
        if name not in GLOBALS:
            raise RefusedPickleError(f"its pickle asks for {name[:200]!r}, which is no tensor; only tensors are read, "
                                     "and nothing is executed")
        self.push(_Global(name))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedPickleError(f"its pickle sets items of a {_kind(target)}")
        for name, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(name, str):
                raise RefusedPickleError(f"its pickle has a dict with a {_kind(name)} as key, expected names")
            target[name] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise RefusedPickleError(f"its pickle appends to a {_kind(target)}")
        target.extend(items)

    def reduce(self) -> None:
        """Call, in pickle's terms; here one of three things that are known to be harmless."""
        arguments, function = self.pop(), self.pop()
        name = function.name if isinstance(function, _Global) else ""
        if name == ORDERED_DICT and arguments == ():
            self.push({})
        elif name == REBUILD_TENSOR and isinstance(arguments, tuple) and len(arguments) in (6, 7):
            self.push(_tensor(*arguments[:4]))
        elif name == REBUILD_PARAMETER and isinstance(arguments, tuple) and len(arguments) == 3:
            if not isinstance(arguments[0], TensorHeader):
                raise RefusedPickleError(f"its pickle makes a parameter of a {_kind(arguments[0])}")
            self.push(arguments[0])
        else:
            raise RefusedPickleError(f"its pickle calls {name or _kind(function)} with arguments that torch.save never "
                                     "writes")

    def build(self) -> None:
        """The attributes of an OrderedDict, which hold versions of modules; nothing is set."""
        self.pop()
        if not isinstance(self.stack[-1], dict):
            raise RefusedPickleError(f"its pickle sets the state of a {_kind(self.stack[-1])}")

    def persistent_id(self) -> None:
        """("storage", class, key, device, number of values)."""
        match self.pop():
            case ("storage", _Global(name=name), str(key), str(), int(values)) if (
                    name.removeprefix("torch.") in STORAGES and type(values) is int and values >= 0):
                storage = Storage(key, STORAGES[name.removeprefix("torch.")][0], values)
            case _:
                raise RefusedPickleError("its pickle refers to something that is no storage of known type and size")
        if self.storages.setdefault(key, storage) != storage:
            raise RefusedPickleError(f"its pickle describes storage {key[:100]!r} in two ways")
        self.push(storage)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorHeader:
    """A tensor that lies within its storage."""
    numbers = [offset, *shape, *strides] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
    if not isinstance(storage, Storage) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise RefusedPickleError("its pickle describes a tensor by something else than a storage and whole numbers")
    if len(shape) != len(strides) or len(shape) > MAX_AXES:
        raise RefusedPickleError(f"its pickle describes a tensor of {len(shape)} sizes and {len(strides)} strides")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (0 in shape and offset > storage.values) or (0 not in shape and last >= storage.values):
        raise RefusedPickleError(f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} "
                                 f"reaches to value {last:,} of storage {storage.key[:100]!r}, which has "
                                 f"{storage.values:,}")
    return TensorHeader(storage, offset, shape, strides)


_Action = Callable[[_Machine, Any], None]


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise RefusedPickleError("its pickle asks for a global whose name is no text")
    machine.find_global(f"{module}.{name}")


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


_ACTIONS: dict[str, _Action] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"),
                    lambda machine, value: machine.push(value)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, place: machine.push(machine.memo[place])),
    "MARK": lambda machine, _: machine.push(MARK),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "GLOBAL": lambda machine, argument: machine.find_global(argument.replace(" ", ".", 1)),
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": lambda machine, _: machine.persistent_id(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
