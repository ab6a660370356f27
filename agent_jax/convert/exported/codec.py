"""Actions and states: values in the environment's units <-> ids, by a spec of agent.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Codec:
    """One ActionSpec or StateSpec of agent.json: parts between delimiters, and the automaton of legal ids."""

    def __init__(self, spec: Mapping[str, Any]):
        self.name, self.groups, self.fields = spec["name"], spec["groups"], spec["fields"]
        self.terminal: list[int] = spec["terminal"]
        self.start, self.accept = spec["automaton"]["start"], spec["automaton"]["accept"]
        # By state: {id: the state after it}.
        self.ways = [dict(zip(*way, strict=True)) for way in spec["automaton"]["ways"]]
        self.ids = np.unique([token for way in self.ways for token in way])
        self.columns = {int(token): column for column, token in enumerate(self.ids)}

    def encode(self, values: Mapping[str, Any]) -> list[int]:
        """Ids of one step's values, delimiters included; numbers out of bounds are clipped.

        Raises:
            ValueError: a key is missing, has another shape, or holds NaN or an unknown choice.
        """
        if self.terminal and values.get("terminal", False):
            return list(self.terminal)
        ids: list[int] = []
        for group in self.groups:
            ids.append(group["start"])
            for part in group["parts"]:
                key, index = part["key"], part["index"]
                shape = tuple(self.fields[key]["shape"])
                if key not in values or np.shape(values[key]) != shape:
                    raise ValueError(f"{self.name}: {key} is missing or not of shape {shape}; found {sorted(values)}")
                tokens = [part["ids"][s] for s in symbols(part, np.asarray(values[key]).tolist() if index is None
                                                          else float(values[key][index]))]
                ids += sorted(tokens) if part["part"] == "buttons" else tokens
            ids.append(group["end"])
        return ids

    def decode(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        """Values at the bin centres, within the bounds, of a complete legal sequence; {"terminal": True} at the end."""
        if self.terminal and list(ids) == self.terminal:
            return {"terminal": np.array(True)}
        values = {key: np.zeros(field["shape"], field["dtype"]) for key, field in self.fields.items()}
        position = 0
        for group in self.groups:
            position += 1
            for part in group["parts"]:
                own = {token: symbol for symbol, token in enumerate(part["ids"])}
                longest = 1 if part["part"] in ("bins", "choice") else len(own)
                numbers: list[int] = []
                while len(numbers) < longest and ids[position] in own:
                    numbers.append(own[ids[position]])
                    position += 1
                values[part["key"]][... if part["index"] is None else part["index"]] = value(part, numbers)
            position += 1
        return values

    def first(self) -> list[int]:
        """The legal sequence that takes the first id in every state."""
        ids, state = [], self.start
        while state != self.accept:
            token = next(iter(self.ways[state]))
            ids, state = [*ids, token], self.ways[state][token]
        return ids

    def choices(self, ids: Sequence[int]) -> list[int]:
        """The ids of one or several legal actions that are a choice among several."""
        found, state = [], self.start
        for token in map(int, ids):
            state = self.start if state == self.accept else state
            found += [token] if len(self.ways[state]) > 1 else []
            state = self.ways[state][token]
        return found

    def forced(self, state: int) -> tuple[list[int], int]:
        """The ids that are the only legal ones from here, and the state after them."""
        ids: list[int] = []
        while len(self.ways[state]) == 1:
            [(token, state)] = self.ways[state].items()
            ids.append(token)
        return ids, state


def symbols(part: Mapping[str, Any], given: Any) -> list[int]:
    """Indices of the tokens that encode the value of a part."""
    kind = part["part"]
    if np.isnan(np.asarray(given, np.float64)).any():
        raise ValueError(f"{part['key']}: found nan, expected a number")
    if kind == "bins":
        low, high, last = part["low"], part["high"], part["count"] - 1
        if low < given < high and given != greatest(high):
            return [min(int((given - low) / ((high - low) / last)), last - 1)]
        return [0 if given <= low else last]
    if kind == "choice":
        numbers = np.asarray(part["values"] or range(len(part["ids"])), np.float32)
        [found] = np.nonzero(numbers == np.float32(given))
        if not len(found):
            raise ValueError(f"{part['key']}: found {given}, expected one of {numbers.tolist()}")
        return [int(found[0])]
    if kind == "buttons":
        return [i for i, down in enumerate(given) if down]
    if kind == "camera":
        degrees = [int(max(part["low"], min(part["high"], turn))) for turn in given]
        span = part["high"] - part["low"] + 1
        return [degrees[0] - part["low"], span + degrees[1] - part["low"]] if any(degrees) else []
    length, turn = math.hypot(*given), math.atan2(given[1], given[0]) / math.tau % 1.0
    if length <= part["dead_zone"]:
        return []
    share = (min(length, 1.0) - part["dead_zone"]) / (1 - part["dead_zone"])
    return [int(turn * part["rotations"]) % part["rotations"],
            part["rotations"] + min(int(share * part["magnitudes"]), part["magnitudes"] - 1)]


def greatest(high: float) -> float:
    """The greatest float32 that is not above `high`."""
    rounded = np.float32(high)
    return float(rounded if float(rounded) <= high else np.nextafter(rounded, np.float32(-np.inf)))


def value(part: Mapping[str, Any], numbers: Sequence[int]) -> Any:
    """The value that a part's tokens decode to: the centre of a bin, clipped to the part's bounds."""
    kind = part["part"]
    if kind == "bins":
        low, high = part["low"], part["high"]
        centre = low + (numbers[0] + 0.5) * ((high - low) / (part["count"] - 1))
        return min(max(centre, -greatest(-low)), greatest(high))
    if kind == "choice":
        return part["values"][numbers[0]] if part["values"] else numbers[0]
    if kind == "buttons":
        return [i in numbers for i in range(len(part["names"]))]
    if not numbers:
        return [0.0, 0.0]
    if kind == "camera":
        span = part["high"] - part["low"] + 1
        degrees = [numbers[0] + part["low"], numbers[1] - span + part["low"]]
        return [min(max(d + 0.5 * ((d > 0) - (d < 0)), part["low"]), part["high"]) for d in degrees]
    angle = (numbers[0] + 0.5) * math.tau / part["rotations"]
    share = (numbers[1] - part["rotations"] + 0.5) / part["magnitudes"]
    length = part["dead_zone"] + share * (1 - part["dead_zone"])
    return [length * math.cos(angle), length * math.sin(angle)]
