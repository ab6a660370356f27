"""Damaged forms of a file: of its bytes, and of what it says where it is JSON or lines of JSON."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_INTEGERS = (0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 10**9)
_VALUES: tuple[Callable[[Any], Any], ...] = (
    lambda _: None, lambda _: True, lambda _: 0, lambda _: -1, lambda _: 1.5, lambda _: 10**9, lambda _: 10**400,
    lambda _: float("nan"), lambda _: float("inf"), lambda _: "", lambda _: "x", lambda _: "x" * 3000,
    lambda _: "../../../etc/passwd", lambda _: "{episode_index:9999999999d}{x.__class__}%s%n",
    lambda _: "\u0000\ud800é",
    lambda _: [], lambda _: {}, lambda value: [value], lambda value: {"": value}, lambda value: [value] * 50,
    lambda value: str(value), lambda value: -value if isinstance(value, (int, float)) else [value, value],
)  # fmt: skip


def damaged(content: bytes, name: str, random: np.random.Generator) -> bytes:
    """One damaged form of a file; never the file itself."""
    for _ in range(100):
        made = _damaged_once(content, name, random)
        if made != content:
            return made
    raise AssertionError(f"{name}: no way to damage it was found")


def _damaged_once(content: bytes, name: str, random: np.random.Generator) -> bytes:
    suffix = Path(name).suffix
    if suffix in (".json", ".jsonl") and random.random() < 0.7:
        return _other_json(content, random, lines=suffix == ".jsonl")
    made = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        _BYTES[random.integers(len(_BYTES))](made, random)
    return bytes(made)


def _place(content: bytearray, random: np.random.Generator) -> int:
    """Anywhere; a quarter of them at the beginning or the end, where headers and directories are."""
    size = len(content)
    if size and random.random() < 0.25:
        near = int(random.integers(min(size, 64)))
        return near if random.random() < 0.5 else size - 1 - near
    return int(random.integers(size)) if size else 0


def _flip(content: bytearray, random: np.random.Generator) -> None:
    if content:
        content[_place(content, random)] ^= 1 << int(random.integers(8))


def _byte(content: bytearray, random: np.random.Generator) -> None:
    if content:
        content[_place(content, random)] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))]))


def _integer(content: bytearray, random: np.random.Generator) -> None:
    size, order = int(random.choice([1, 2, 4, 8])), str(random.choice(["<", ">"]))
    value = int(_INTEGERS[random.integers(len(_INTEGERS))]) % 2 ** (8 * size)
    at = _place(content, random)
    content[at : at + size] = struct.pack(order + {1: "B", 2: "H", 4: "I", 8: "Q"}[size], value)


def _cut(content: bytearray, random: np.random.Generator) -> None:
    del content[_place(content, random) :]


def _drop(content: bytearray, random: np.random.Generator) -> None:
    at = _place(content, random)
    del content[at : at + int(random.integers(1, 64))]


def _insert(content: bytearray, random: np.random.Generator) -> None:
    at = _place(content, random)
    content[at:at] = random.bytes(int(random.integers(1, 16)))


def _repeat(content: bytearray, random: np.random.Generator) -> None:
    at = _place(content, random)
    content[at:at] = content[at : at + int(random.integers(1, 64))] * int(random.integers(1, 20))


_BYTES = (_flip, _flip, _byte, _integer, _integer, _cut, _drop, _insert, _repeat)


def _other_json(content: bytes, random: np.random.Generator, *, lines: bool) -> bytes:
    """The file with one value replaced, removed, renamed or nested deeply."""
    texts = content.decode().splitlines() if lines else [content.decode()]
    number = int(random.integers(len(texts))) if texts else 0
    document = {"": json.loads(texts[number])} if texts else {"": {}}
    places = list(_places(document))
    holder, key = places[random.integers(len(places))]
    kind = random.random()
    if kind < 0.15 and holder is not document:
        del holder[key]
    elif kind < 0.25 and isinstance(holder, dict) and holder is not document:
        holder[str(key) + "x"] = holder.pop(key)
    else:
        holder[key] = _VALUES[random.integers(len(_VALUES))](copy.deepcopy(holder[key]))
    text = json.dumps(document[""])
    if kind > 0.97:
        text = "[" * 100_000 + text + "]" * 100_000
    texts[number : number + 1] = [text]
    return "\n".join(texts).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of nested objects and arrays."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)
