"""Which numbers of a data set's columns make up a key of a spec: `action[0:6],gripper`.

A column may be taken whole or in part, `[i]` or `[i:j]`; several are joined by commas.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

_PART = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<first>\d+)(?P<range>:(?P<stop>\d+))?\])?")


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a key's values are made of."""

    shape: tuple[int, ...]
    parts: tuple[tuple[str, int, int], ...]  # column, first component, component after the last

    def values(self, numbers: Mapping[str, np.ndarray]) -> np.ndarray:
        """(steps, *shape) out of the columns."""
        joined = np.concatenate([numbers[name][:, first:stop] for name, first, stop in self.parts], axis=1)
        return joined.reshape(-1, *self.shape)


def select(key: str, text: str, shapes: Mapping[str, tuple[int, ...]], unusable: Mapping[str, str],
           shape: tuple[int, ...] | None = None) -> Selection:
    """The selection that `config.fields.KEY=text` means.

    Args:
        key: of a spec.
        text: columns, joined by commas, each whole or with components `[i]`, `[i:j]`.
        shapes: of a step's numbers, by column of the data.
        unusable: why other columns cannot be taken.
        shape: that the spec expects; None: whatever it is.

    Raises:
        ValueError: no such column or component, or another size than the spec expects.
    """
    where = f"config.fields.{key}={text!r}"
    parts = []
    for piece in text.split(","):
        match = _PART.fullmatch(piece.strip())
        name = match["name"] if match else piece
        if name in unusable:
            raise ValueError(f"{where}: {unusable[name]}")
        if match is None or name not in shapes:
            raise ValueError(f"{where}: no feature {name!r} that holds numbers; expected one of {', '.join(shapes)}, "
                             "or a part such as FEATURE[0:3]")
        if len(shapes[name]) != 1:
            raise ValueError(f"{where}: {name!r} has shape {list(shapes[name])}, expected a vector")
        size = shapes[name][0]
        first = int(match["first"] or 0)
        stop = size if not match["first"] else int(match["stop"]) if match["range"] else first + 1
        if not first < stop <= size:
            raise ValueError(f"{where}: {name!r} has {size} numbers, expected a part of them")
        parts.append((name, first, stop))
    found = sum(stop - first for _, first, stop in parts)
    if shape is not None and int(np.prod(shape)) != found:
        raise ValueError(f"{where}: {found} numbers, but the spec expects shape {list(shape)} for {key!r}; choose "
                         "components as FEATURE[0:3], or correct the spec")
    return Selection((found,) if shape is None else shape, tuple(parts))
