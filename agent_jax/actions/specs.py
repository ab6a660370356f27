"""Specs of actions and states: named parts with units, bounds and tokens, as plain data.

    group        [STARTACTION] [ROBOTACTIONX13] [ROBOTACTIONY3] [ENDOFACTION]
                  start         part 0           part 1          end

A spec converts to JSON and back exactly, has a fingerprint, and can be compared with another. `BoundSpec` encodes and
decodes values (codec.py). The specs of known data sets are in datasets.py.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from agent_jax.actions.controls import MOST_BUTTONS, Buttons, Camera, Stick
from agent_jax.actions.parts import MOST_TOKENS, Bins, Choice

Part = Bins | Choice | Buttons | Camera | Stick
PARTS: dict[str, type[Part]] = {"bins": Bins, "choice": Choice, "buttons": Buttons, "camera": Camera, "stick": Stick}
Fields = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]  # shape and dtype by key

MOST_PARTS = 4096  # of a spec
MOST_CONTROLS = 32  # parts of variable length in a spec: all later ones may follow one

TERMINAL_KEY = "terminal"  # {"terminal": True} is the value of the end-of-episode action

_Made = TypeVar("_Made")


@dataclasses.dataclass(frozen=True)
class Group:
    """Parts in order, between two delimiter tokens."""

    start: str
    parts: tuple[Part, ...]
    end: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ValueError(f"group {self.start}..{self.end}: expected at least one part")


@dataclasses.dataclass(frozen=True)
class _Spec:
    """Base class of specs."""

    name: str
    block: str  # of the vocabulary, with all tokens
    groups: tuple[Group, ...]
    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if not self.groups:
            raise ValueError(f"{self.kind} spec {self.name!r}: expected at least one group")
        _check_size(self.parts, f"{self.kind} spec {self.name!r}")
        self._check_keys()

    def _check_keys(self) -> None:
        places = [(part.key, part.index) for part in self.parts]
        for key in {key for key, _ in places}:
            indices = [index for k, index in places if k == key]
            numbers = sorted(index for index in indices if index is not None)
            if indices != [None] and numbers != list(range(len(indices))):
                raise ValueError(f"{self.kind} spec {self.name!r}: the parts of key {key!r} have indices {indices}, "
                                 "expected one part without index, or each index from 0 once")

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in order."""
        return tuple(part for group in self.groups for part in group.parts)

    @functools.cached_property
    def fields(self) -> Fields:
        """Shape and dtype of each key of the values."""
        fields: Fields = {}
        for key in dict.fromkeys(part.key for part in self.parts):
            parts = [part for part in self.parts if part.key == key]
            size = sum(len(part.limits) for part in parts)
            scalar = isinstance(parts[0], (Bins, Choice)) and parts[0].index is None
            if isinstance(parts[0], Buttons):
                dtype = np.dtype(bool)
            elif all(isinstance(part, Choice) and not part.values for part in parts):
                dtype = np.dtype(np.int32)
            else:
                dtype = np.dtype(np.float32)
            fields[key] = (() if scalar else (size,), dtype)
        return fields

    def bounds(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), float64 of the shape of values[key]: the range of `decode`, to which `encode` clips.

        Raises:
            ValueError: no such key.
        """
        if key not in self.fields:
            raise ValueError(f"{self.kind} spec {self.name!r} has no key {key!r}; it has {', '.join(self.fields)}")
        parts = sorted((part for part in self.parts if part.key == key), key=lambda part: part.index or 0)
        limits = np.array([limit for part in parts for limit in part.limits], np.float64)
        shape = self.fields[key][0]
        return limits[:, 0].reshape(shape), limits[:, 1].reshape(shape)

    def named(self, place: str) -> str:
        """The place of a part with the part's name, for messages: "action[0] (dx)"."""
        fixed = (part for part in self.parts if isinstance(part, (Bins, Choice)))
        return next((part.named for part in fixed if part.place == place), place)

    @property
    def units(self) -> dict[str, str]:
        """Units by place, as {"action[0]": "m"}, of the parts that have one."""
        return {part.place: part.unit for part in self.parts if part.unit}

    def tokens(self) -> tuple[str, ...]:
        """All tokens without repetition; `Block(spec.block, spec.tokens())` is a vocabulary block for the spec."""
        found: list[str] = []
        for group in self.groups:
            found += [group.start, group.end]
        for part in self.parts:
            found += part.tokens
        return tuple(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON, for `from_dict`."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "groups"}
        plain["groups"] = [
            {"start": group.start, "parts": [_part_to_dict(part) for part in group.parts], "end": group.end}
            for group in self.groups
        ]
        return {"kind": self.kind, **plain}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The spec that `to_dict` described.

        Raises:
            ValueError: a field is missing, unknown, or inconsistent with another; names it.
        """
        where = f"{cls.kind} spec"
        if not isinstance(content, Mapping):
            raise ValueError(f"{where}: found {str(content)[:80]}, expected an object with name, block and groups")
        content = dict(content)
        kind = content.pop("kind", cls.kind)
        if kind != cls.kind:
            raise ValueError(f"{where}: found kind {kind!r}, expected {cls.kind!r}")
        groups: list[Group] = []
        all_parts: list[Part] = []
        for i, group in enumerate(_checked_list(content.get("groups", []), f"{where}.groups")):
            place = f"{where}.groups[{i}]"
            if not isinstance(group, Mapping):
                raise ValueError(f"{place}: found {group!r}, expected a group with start, parts and end")
            parts = _checked_list(dict(group).get("parts", []), f"{place}.parts")
            first = len(all_parts)
            for j, part in enumerate(parts):
                all_parts.append(_part_from_dict(part, f"{place}.parts[{j}]"))
                _check_size(all_parts, f"{place}.parts[{j}]")  # before the next, since each takes time and memory
            groups.append(_make(Group, {**group, "parts": tuple(all_parts[first:])}, place))
        return _make(cls, {**content, "groups": tuple(groups)}, where)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the canonical JSON."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def difference(self, other: _Spec) -> str:
        """A description of the differences from `other`; "" if they are equal."""
        return "; ".join(_differences(self.to_dict(), other.to_dict(), ""))


@dataclasses.dataclass(frozen=True)
class ActionSpec(_Spec):
    """The spec of an action: one group, predicted by the model."""

    terminal: str = ""  # token of each fixed part in the end-of-episode action; "": no such action
    rate_hz: float = 0.0  # control rate; 0: unknown
    frame: str = ""  # reference frame of the numbers
    absolute: bool = dataclasses.field(default=False, kw_only=True)  # targets in `frame`; False: changes
    kind: ClassVar[str] = "action"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate_hz", float(self.rate_hz))
        super().__post_init__()
        if len(self.groups) != 1:
            raise ValueError(f"action spec {self.name!r}: found {len(self.groups)} groups, expected one")
        if not (math.isfinite(self.rate_hz) and self.rate_hz >= 0):
            raise ValueError(f"action spec {self.name!r}: found rate_hz={self.rate_hz}, expected 0 (unknown) or more")
        if self.terminal and not any(part.fixed for part in self.parts):
            raise ValueError(f"action spec {self.name!r}: terminal={self.terminal!r} needs at least one fixed part")
        if self.terminal and TERMINAL_KEY in self.fields:
            raise ValueError(f"action spec {self.name!r}: the key {TERMINAL_KEY!r} is reserved for the terminal action")

    def tokens(self) -> tuple[str, ...]:
        """All tokens without repetition; `Block(spec.block, spec.tokens())` is a vocabulary block for the spec."""
        found = super().tokens()
        return (*found, self.terminal) if self.terminal and self.terminal not in found else found


@dataclasses.dataclass(frozen=True)
class StateSpec(_Spec):
    """The spec of a state: one or more groups, input only."""

    frame: str = ""  # reference frame of the numbers
    kind: ClassVar[str] = "state"
    terminal: ClassVar[str] = ""


def _check_size(parts: Sequence[Part], where: str) -> None:
    """Refuse too many parts or tokens; `where` is for messages."""
    controls = [part for part in parts if not part.fixed]
    for what, found, most in (
        ("parts", len(parts), MOST_PARTS), ("buttons, cameras and sticks", len(controls), MOST_CONTROLS),
        ("tokens in all parts", sum(part.size for part in parts), MOST_TOKENS),
        ("buttons", sum(part.size for part in controls if isinstance(part, Buttons)), MOST_BUTTONS),
    ):
        if found > most:
            raise ValueError(f"{where}: found {found:,} {what} up to here, expected at most {most:,} in a spec")


def _part_to_dict(part: Part) -> dict[str, Any]:
    kind = next(name for name, part_type in PARTS.items() if type(part) is part_type)
    plain = dataclasses.asdict(part)
    return {"part": kind, **{name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}}


def _part_from_dict(content: Any, where: str) -> Part:
    kind = content.get("part") if isinstance(content, Mapping) else None
    if not isinstance(kind, str) or kind not in PARTS:
        raise ValueError(f"{where}: found part {kind!r}, expected one of {', '.join(PARTS)}")
    if not isinstance(content.get("key", ""), str):
        raise ValueError(f"{where}.key: found {content['key']!r}, expected a text")
    return _make(PARTS[kind], {name: value for name, value in content.items() if name != "part"}, where)


def _checked_list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise ValueError(f"{where}: found {value!r}, expected a list of groups of fields")
    return value


def _make(cls: type[_Made], content: Mapping[str, Any], where: str) -> _Made:
    """`cls(**content)`, with errors that name the field."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    unknown = [name for name in content if name not in fields]
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in content]
    if unknown or missing:
        problem = f"{unknown[0]}: no such field" if unknown else f"{missing[0]}: missing"
        raise ValueError(f"{where}.{problem}; {cls.__name__} has {', '.join(fields)}")
    try:
        return cls(**content)
    except (TypeError, ValueError, OverflowError) as error:  # OverflowError: of integers too large for a float
        raise ValueError(f"{where}: {error}") from error


def _differences(one: Any, other: Any, path: str) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        lines: list[str] = []
        for name in dict.fromkeys([*one, *other]):
            below = f"{path}.{name}" if path else name
            lines += _differences(one.get(name), other.get(name), below)
        return lines
    if isinstance(one, list) and isinstance(other, list):
        lines = [f"{path}: {len(one)} items here, {len(other)} there"] if len(one) != len(other) else []
        for i, (a, b) in enumerate(zip(one, other, strict=False)):
            lines += _differences(a, b, f"{path}[{i}]")
        return lines
    return [] if one == other else [f"{path}: {one!r} here, {other!r} there"]
