"""A restricted unpickler: plain data alone, nothing is imported or executed, and time and memory are bounded.

    opcode   one of `OPCODES`, and at most `max_opcodes` of them
    global   a name from the allow-list `functions`; it stays a name
    REDUCE   calls what the allow-list holds for that name, a function of the reader and not of the file
    BUILD    `build`, which never sets attributes
    key      of a dict, or member of a set: a plain value, for hashing a tuple of tuples can take 2^40 steps; few of
             them are numbers, whose hashes a file can make collide

It restricts the unpickler that is written in Python, because its memo is a dict. The memo of the C unpickler is an
array, which grows to any index that four bytes of a file name.
"""

from __future__ import annotations

import dataclasses
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, cast

# An empty set takes one byte of a file and 216 of memory, the most of all opcodes.
BYTES_AN_OPCODE = 216
PLAIN_KEYS = (str, bytes, int, float, bool, type(None))
MAX_NUMBER_KEYS = 10_000  # keys and members of sets that are numbers, in a whole pickle
OPCODES = (
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BINSTRING", "SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "FROZENSET", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS", "BINPUT", "LONG_BINPUT",
    "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD",
)


class RefusedPickleError(ValueError):
    """The pickle is damaged, or holds what its reader does not take; the reader adds the name of the file."""


@dataclasses.dataclass(frozen=True)
class Global:
    """The name of a global in a pickle: MODULE.NAME."""

    name: str


class Unfinished:
    """A placeholder for an object whose state follows; `build` returns the object."""

    place: int | None = None  # in the memo


class PlainUnpickler(pickle._Unpickler):
    """Reads one pickle of plain data; a subclass defines `build` and `persistent_load`."""

    stack: list[Any]
    metastack: list[list[Any]]  # the stacks below the marks
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any, functions: Mapping[str, Callable[..., Any] | None], max_opcodes: int,
                 keys: tuple[type, ...] = PLAIN_KEYS):
        """Prepare to read a pickle.

        Args:
            file: has `read` and `readline`, which read no further than its end.
            functions: what REDUCE calls for each name that the pickle may use; None: the name may only be mentioned.
            max_opcodes: a pickle of more is refused; bounds time, and memory at `BYTES_AN_OPCODE` each.
            keys: types that a key of a dict may have.
        """
        super().__init__(file, encoding="latin-1")
        self.memo: dict[int, Any] = _Memo()
        self._functions, self._max_opcodes, self._opcodes = functions, max_opcodes, 0
        self._keys, self._number_keys = keys, 0

    def load(self) -> Any:
        """The object that the pickle describes; containers are shared as in the file.

        Raises:
            RefusedPickleError: it is damaged, has an opcode or too many that plain data do not need, or names what the
                allow-list does not hold.
        """
        try:
            return super().load()
        except RefusedPickleError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, EOFError, struct.error,
                pickle.UnpicklingError) as error:
            raise RefusedPickleError(f"its pickle is damaged ({type(error).__name__})") from error

    def find_class(self, module: str, name: str) -> Global:
        """The name, if the allow-list holds it."""
        found = f"{module}.{name}"
        if found not in self._functions:
            raise RefusedPickleError(f"its pickle asks for {found[:200]!r}, expected plain data; nothing was executed")
        return Global(found)

    def build(self, target: Any, state: Any) -> Any:
        """The object that replaces `target` once it has its state."""
        del state
        raise RefusedPickleError(f"its pickle sets the state of a {kind_of(target)}")

    def check_keys(self, keys: list[Any], what: str, kinds: tuple[type, ...] = PLAIN_KEYS) -> list[Any]:
        """The keys, or members of a set, all of which can be hashed at once.

        Raises:
            RefusedPickleError: one is of another type than `kinds`, or too many of the pickle's are numbers.
        """
        for key in keys:
            if type(key) not in kinds:
                raise RefusedPickleError(f"its pickle has {what} with a {kind_of(key)} as key, expected "
                                         f"{', '.join(kind.__name__ for kind in kinds)}")
            self._number_keys += isinstance(key, (int, float))
        if self._number_keys > MAX_NUMBER_KEYS:
            raise RefusedPickleError(f"its pickle has more than {MAX_NUMBER_KEYS:,} numbers as keys or in sets")
        return keys

    def count_opcode(self) -> None:
        """Count an opcode before it is carried out."""
        self._opcodes += 1
        if self._opcodes > self._max_opcodes:
            raise RefusedPickleError(f"its pickle has more than {self._max_opcodes:,} opcodes, the most that is read")

    def _stop(self) -> None:
        if len(self.stack) != 1 or self.metastack:
            raise RefusedPickleError(f"its pickle is damaged ({len(self.stack)} objects at its end, expected one)")
        pickle._Unpickler.dispatch[pickle.STOP[0]](cast(Any, self))

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedPickleError(f"its pickle sets items of a {kind_of(target)}")
        self.check_keys(items[::2], "a dict", self._keys)
        target.update(zip(items[::2], items[1::2], strict=True))

    def _add_items(self) -> None:
        items = self.check_keys(self.pop_mark(), "a set")
        if not isinstance(self.stack[-1], set):
            raise RefusedPickleError(f"its pickle adds to a {kind_of(self.stack[-1])}")
        self.stack[-1].update(items)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        call = self._functions[function.name] if isinstance(function, Global) else None
        try:
            if call is None or type(arguments) is not tuple:
                raise TypeError("no call of plain data")
            self.stack[-1] = call(*arguments)
        except TypeError as error:
            raise RefusedPickleError(f"its pickle calls {kind_of(function)} with arguments that its library never "
                                     "writes") from error

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        self.stack[-1] = built = self.build(target, state)
        if isinstance(target, Unfinished) and target.place is not None and self.memo.get(target.place) is target:
            self.memo[target.place] = built


def kind_of(value: Any) -> str:
    """The name of its type, never the value itself: a small pickle can describe one that prints without end."""
    return (value.name if isinstance(value, Global) else type(value).__name__)[:200]


class _Memo(dict[int, Any]):
    def __setitem__(self, place: int, value: Any) -> None:
        super().__setitem__(place, value)
        if isinstance(value, Unfinished):
            value.place = place


_Handler = Callable[[Any], Any]


class _Dispatch(dict[int, _Handler]):
    def __missing__(self, code: int) -> _Handler:
        name = next((opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)), code)
        raise RefusedPickleError(f"its pickle has the opcode {name}, which plain data do not need")


def _counted(handler: _Handler) -> _Handler:
    def run(reader: PlainUnpickler) -> None:
        reader.count_opcode()
        handler(reader)

    return run


_OWN: dict[str, _Handler] = {
    "FRAME": lambda reader: reader.read(8),  # its length; pickle would copy the frame as a whole
    "STOP": PlainUnpickler._stop,
    "SETITEM": lambda reader: reader._set_items([reader.stack.pop(-2), reader.stack.pop()]),
    "SETITEMS": lambda reader: reader._set_items(reader.pop_mark()),
    "ADDITEMS": PlainUnpickler._add_items,
    "FROZENSET": lambda reader: reader.append(frozenset(reader.check_keys(reader.pop_mark(), "a set"))),
    "REDUCE": PlainUnpickler._reduce,
    "BUILD": PlainUnpickler._build,
}
PlainUnpickler.dispatch = _Dispatch({code: _counted(_OWN.get(name) or pickle._Unpickler.dispatch[code])
                                     for name in OPCODES for code in getattr(pickle, name)})
