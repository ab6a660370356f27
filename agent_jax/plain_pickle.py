"""The one reader of pickles: opcodes acted out by a machine of our own, which executes nothing and has bounds.

    bytes --pickletools.genops (which only takes them apart)--> opcode, argument --> PickleMachine: stack, memo
                                                                    its subclass: what a global, a call, a state means

A pickle is a program: unpickling runs whatever function it names, and the memo of Python's own machine grows to the
place that four bytes of a file name. Here the memo is a dict, every opcode counts, and a global is what the subclass
makes of its name. Containers are shared as in the file and never copied. Keys and members of sets are plain values, for
a tuple of tuples can take 2^40 steps to hash, and few of them are numbers, whose hashes a file can make collide.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

# An empty set takes one byte of a file and 216 of memory, the most of all opcodes.
BYTES_AN_OPCODE = 216
PLAIN_KEYS = (str, bytes, int, float, bool, type(None))
MAX_NUMBER_KEYS = 10_000  # keys and members of sets that are numbers, in a whole pickle


class RefusedPickleError(ValueError):
    """The pickle is damaged, or holds what its reader does not take; the text says what, the reader adds the file."""


class _Mark:
    """Where the items of a tuple, list or dict begin on the stack."""


MARK = _Mark()


class Unfinished:
    """What a subclass puts where an object will be once its state is known."""

    place: int | None = None  # in the memo


class PickleMachine:
    """Stack and memo, and what the opcodes do to them; a subclass decides on globals, calls and states."""

    def __init__(self, max_opcodes: int, keys: tuple[type, ...] = PLAIN_KEYS):
        """A machine for one pickle.

        Args:
            max_opcodes: a pickle of more is refused; bounds time, and memory at `BYTES_AN_OPCODE` each.
            keys: types that a key of a dict may have.
        """
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._max_opcodes, self._keys, self._number_keys = max_opcodes, keys, 0

    def run(self, content: Any) -> Any:
        """The object that the pickle describes.

        Args:
            content: bytes, or an object with `read`, `readline` and `tell` that reads no further than its end.

        Raises:
            RefusedPickleError: it is damaged, has an opcode or too many that plain data do not need, or the subclass
                refuses what it names.
        """
        try:
            for number, (opcode, argument, position) in enumerate(pickletools.genops(content)):
                if number >= self._max_opcodes:
                    raise RefusedPickleError(f"its pickle has more than {self._max_opcodes:,} opcodes, the most that "
                                             "is read")
                if opcode.name not in _ACTIONS:
                    raise RefusedPickleError(f"its pickle has the opcode {opcode.name} at byte {position}, which "
                                             "plain data do not need")
                _ACTIONS[opcode.name](self, argument)
        except RefusedPickleError:
            raise
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise RefusedPickleError(f"its pickle is damaged ({type(error).__name__})") from error
        if len(self.stack) != 1 or self.stack[0] is MARK:
            raise RefusedPickleError(f"its pickle is damaged ({len(self.stack)} objects at its end, expected one)")
        return self.stack.pop()

    def find_global(self, name: str) -> Any:
        """What stands for MODULE.NAME; nothing may be imported."""
        raise NotImplementedError

    def reduce(self, function: Any, arguments: Any) -> Any:
        """What pickle would get by calling `function`."""
        raise NotImplementedError

    def build(self, target: Any, state: Any) -> Any:
        """What stands on the stack once pickle would have set the state of `target`."""
        raise NotImplementedError

    def persistent_id(self, value: Any) -> Any:
        """What a persistent id stands for."""
        raise RefusedPickleError(f"its pickle refers to an object outside it by a {kind_of(value)}")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """The topmost value, which must be none of the marks."""
        value = self.stack.pop()
        if value is MARK:
            raise RefusedPickleError("its pickle is damaged (a mark where a value should be)")
        return value

    def pop_to_mark(self) -> list[Any]:
        """The values above the last mark, in their order."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def push_tuple(self, length: int) -> None:
        """Make a tuple of the topmost values."""
        self.push(tuple([self.pop() for _ in range(length)][::-1]))

    def set_items(self, items: list[Any]) -> None:
        """Keys and values in turn, into the dict below them."""
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedPickleError(f"its pickle sets items of a {kind_of(target)}")
        self.check_keys(items[::2], "a dict", self._keys)
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        """Values into the list below them."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise RefusedPickleError(f"its pickle appends to a {kind_of(target)}")
        target.extend(items)

    def add(self, items: list[Any]) -> None:
        """Values into the set below them."""
        target = self.stack[-1]
        if not isinstance(target, set):
            raise RefusedPickleError(f"its pickle adds to a {kind_of(target)}")
        self.check_keys(items, "a set")
        target.update(items)

    def put(self, place: int | None) -> None:
        """Remember the topmost value; None: at the next place."""
        place = len(self.memo) if place is None else place
        self.memo[place] = self.stack[-1]
        if isinstance(self.stack[-1], Unfinished):
            self.stack[-1].place = place

    def stack_global(self) -> None:
        """A global whose module and name lie on the stack."""
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise RefusedPickleError("its pickle asks for a global whose name is no text")
        self.push(self.find_global(f"{module}.{name}"))

    def call(self) -> None:
        """REDUCE: a function and the tuple of its arguments become its result."""
        arguments, function = self.pop(), self.pop()
        self.push(self.reduce(function, arguments))

    def set_state(self) -> None:
        """BUILD: the result takes the place of the target, in the memo as well."""
        state, target = self.pop(), self.pop()
        built = self.build(target, state)
        if isinstance(target, Unfinished) and target.place is not None and self.memo.get(target.place) is target:
            self.memo[target.place] = built
        self.push(built)

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


def kind_of(value: Any) -> str:
    """The name of its type, never the value itself: a small pickle can describe one that prints without end."""
    return str(getattr(value, "pickle_name", type(value).__name__))[:200]


_Action = Callable[[PickleMachine, Any], None]

_ACTIONS: dict[str, _Action] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1",
                     "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING"),
                    lambda machine, value: machine.push(value)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), lambda machine, place: machine.put(place)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, place: machine.push(machine.memo[place])),
    "MARK": lambda machine, _: machine.push(MARK),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(machine.check_keys(machine.pop_to_mark(), "a set"))),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.pop_to_mark()),
    "GLOBAL": lambda machine, argument: machine.push(machine.find_global(argument.replace(" ", ".", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.stack_global(),
    "BINPERSID": lambda machine, _: machine.push(machine.persistent_id(machine.pop())),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.set_state(),
}
