"""Parser of optimized HLO text, which also finds how often each computation runs.

    ENTRY -> while (12 trips) -> body -> while (4 trips) -> body: 48 times
                                      -> fusion -> fused computation: 12 times

The compiler's own analyses count the body of a loop once. A scan becomes a `while` that counts from a constant to a
constant: the CPU compiler writes the trip count next to it; for a TPU it is read from the loop itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64,
         "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|c64|c128|f8e\w+|f4e\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%([\w.-]+)")
_HEAD = re.compile(r"(?:ENTRY|%)")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%[\w.-]+ = ")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# A loop around one of these must have a known trip count.
_COUNTED = ("dot", "convolution", "all-", "reduce-scatter", "collective-permute")
PRODUCT_TARGET = 'custom_call_target="__cublas'  # matrix products of a GPU
FUSIONS = ("fusion", "fusion-start")  # a fusion-done ends the latter
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool  # in on-chip memory, marked S(n) in a TPU's layouts, rather than in HBM

    @property
    def bytes(self) -> int:
        """Size without padding."""
        bits = _BITS.get(self.dtype) or (4 if self.dtype.startswith("f4") else 8)
        return math.prod(self.shape) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    literal: str  # the text between the parentheses
    attributes: str  # the text after them
    is_root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result, in order."""
        return tuple(
            Array(dtype, tuple(map(int, filter(None, shape.split(",")))), bool(_MEMORY_SPACE.search(layout or "")))
            for dtype, shape, layout in _ARRAY.findall(self.type))

    @property
    def bytes(self) -> int:
        """Size of the whole result."""
        return sum(array.bytes for array in self.arrays)

    def called(self, role: str) -> str | None:
        """The computation that is called as `calls`, `body`, `condition` or `to_apply`."""
        return next((name for kind, name in _CALLED.findall(self.attributes) if kind == role), None)

    @property
    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = _BRANCHES.search(self.attributes)
        pair = [name for kind, name in _CALLED.findall(self.attributes) if kind.endswith("_computation")]
        return _NAME.findall(listed[1]) if listed else pair

    @property
    def scope(self) -> str:
        """Where it was traced; "" if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's result."""
        return next(each for each in self.instructions.values() if each.is_root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for each in self.instructions.values():
            for operand in dict.fromkeys(each.operands):
                if operand in found:
                    found[operand].append(each)
        return found

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """The parameters, by number."""
        found = [each for each in self.instructions.values() if each.opcode == "parameter"]
        return sorted(found, key=lambda each: int(each.literal))


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed module."""

    computations: dict[str, Computation]
    entry: Computation

    def walk(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction outside of fusions, with its computation and how often it runs.

        A conditional counts as the branch with the most instructions.

        Raises:
            ValueError: a loop around products or collectives has no known trip count.
        """
        yield from self._walk(self.entry, 1)

    def _walk(self, computation: Computation, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
        for each in computation.instructions.values():
            if each.opcode == "while":
                body = self.computations[str(each.called("body"))]
                yield from self._walk(body, times * self._trips_that_matter(computation, each, body))
            elif each.opcode == "conditional":
                branches = [self.computations[name] for name in each.branches]
                yield from self._walk(max(branches, key=lambda branch: len(branch.instructions)), times)
            elif each.opcode in ("call", "async-start") and (name := each.called("calls") or each.called("to_apply")):
                yield from self._walk(self.computations[name], times)
            else:
                yield computation, each, times

    def _trips_that_matter(self, computation: Computation, loop: Instruction, body: Computation) -> int:
        """The trip count; 1 for a data-dependent loop around nothing that is counted."""
        try:
            return self.trips(computation, loop)
        except ValueError:
            for _, each, _ in self._walk(body, 1):
                if any(one.opcode.startswith(_COUNTED) or PRODUCT_TARGET in one.attributes
                       for one in (each, *(inner for _, inner in self.inside(each)))):
                    raise
            return 1

    def inside(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """The instructions of a fusion and of fusions within it; nothing for another instruction."""
        name = instruction.called("calls") if instruction.opcode in FUSIONS else None
        for each in self.computations[name].instructions.values() if name else ():
            yield self.computations[str(name)], each
            yield from self.inside(each)

    def trips(self, computation: Computation, loop: Instruction) -> int:
        """How often the body of a `while` runs.

        Raises:
            ValueError: it is not a loop from a constant to a constant by constant steps.
        """
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        condition, body = (self.computations[str(loop.called(role))] for role in ("condition", "body"))
        index, limit, inclusive = self._bound(condition)
        first = self._constant(computation, computation.instructions[loop.operands[0]], index)
        after = body.instructions[body.root.operands[index]] if body.root.opcode == "tuple" else None
        step = None if after is None else self._step(body, after)
        if first is None or limit is None or step is None or step < 1:
            raise ValueError(f"HLO loop {loop.name!r} ({loop.scope}): its trips could not be read: from {first} to "
                             f"{limit} by {step}; expected constants")
        return max(0, math.ceil((limit + inclusive - first) / step))

    def _bound(self, condition: Computation) -> tuple[int, int | None, int]:
        """The index of the counter in the loop's state, its limit, and 1 where the limit is included."""
        compare = condition.root
        arguments = [condition.instructions[name] for name in compare.operands]
        direction = re.search(r"direction=(\w+)", compare.attributes)
        if compare.opcode == "fusion":
            inner = self.computations[str(compare.called("calls"))]
            direction = re.search(r"direction=(\w+)", inner.root.attributes)
            order = [inner.instructions[name] for name in inner.root.operands]
            arguments = [arguments[int(each.literal)] if each.opcode == "parameter" else each for each in order]
        if len(arguments) != 2 or direction is None or direction[1] not in ("LT", "LE"):
            return 0, None, 0
        counter = arguments[0]
        while counter.opcode in ("copy", "bitcast"):
            counter = condition.instructions[counter.operands[0]]
        index = re.search(r"index=(\d+)", counter.attributes)
        limit = self._constant(condition, arguments[1])
        return (int(index[1]) if index else 0), limit, int(direction[1] == "LE")

    def _step(self, body: Computation, after: Instruction) -> int | None:
        """What the body adds to the counter."""
        while after.opcode in ("copy", "bitcast"):
            after = body.instructions[after.operands[0]]
        holder, operands = body, list(after.operands)
        if after.opcode == "fusion":
            holder = self.computations[str(after.called("calls"))]
            after = holder.root
            operands = list(after.operands)
        if after.opcode != "add":
            return None
        constants = [self._constant(holder, holder.instructions[name]) for name in operands]
        return next((value for value in constants if value is not None), None)

    def _constant(self, computation: Computation, instruction: Instruction, index: int | None = None) -> int | None:
        """The constant that an instruction, or one element of its tuple, is; None if it may vary."""
        while True:
            if instruction.opcode == "tuple" and index is not None:
                instruction, index = computation.instructions[instruction.operands[index]], None
            elif instruction.opcode in ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start"):
                instruction = computation.instructions[instruction.operands[0]]
            elif instruction.opcode == "constant":
                return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
            else:
                return None


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _statements(text):
        if _HEAD.match(line):
            name = _NAME.search(line)
            assert name is not None, line[:80]
            current = computations[name[1]] = Computation(name[1], {})
            entry = name[1] if line.startswith("ENTRY") else entry
        elif current is not None:
            instruction = _instruction(line)
            current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("HLO text: found no line 'ENTRY ...', expected the text of a compiled module")
    return Module(computations, computations[entry])


def _statements(text: str) -> Iterator[str]:
    """The heads of computations and their instructions, each as one line.

    The attributes of a Pallas kernel may hold JSON of several lines.
    """
    statement: list[str] = []
    for line in text.splitlines():
        begins = _HEAD.match(line) or _INSTRUCTION.match(line)
        if statement and (begins or not line):
            yield " ".join(statement)
            statement = []
        if statement or begins:
            statement.append(line)
    if statement:
        yield " ".join(statement)


def _instruction(line: str) -> Instruction:
    """`[ROOT ]%name = type opcode(operands), attributes`."""
    left, _, right = line.strip().partition(" = ")
    is_root = left.startswith("ROOT ")
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    kind, rest = right[:end], right[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    inner = rest[start + 1 : stop - 1]
    operands = () if rest[:start] in ("constant", "parameter") else tuple(_NAME.findall(inner))
    name = left.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, rest[:start], kind, operands, inner, rest[stop:], is_root)


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.end()
    raise ValueError(f"HLO text: found an open parenthesis in {text[:80]!r}")
