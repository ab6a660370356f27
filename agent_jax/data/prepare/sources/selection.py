"""Selects the numbers of a data set's columns that make up a key of a spec: `action[0:6],gripper`.

A column is taken whole or in part, `[i]` or `[i:j]`; commas join several.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.data.prepare.sources.source import Shapes

_PART = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<first>\d+)(?P<range>:(?P<stop>\d+))?\])?")


@dataclasses.dataclass(frozen=True)
class Selection:
    """The columns, or parts of columns, that make up the values of a key."""

    shape: tuple[int, ...]
    parts: tuple[tuple[str, int, int], ...]  # column, first component, component after the last

    def values(self, numbers: Mapping[str, np.ndarray]) -> np.ndarray:
        """(steps, *shape), joined from the columns."""
        joined = np.concatenate([numbers[name][:, first:stop] for name, first, stop in self.parts], axis=1)
        return joined.reshape(-1, *self.shape)


def selected_columns(selections: Mapping[str, Selection]) -> set[str]:
    """All columns that the selections read."""
    return {name for selection in selections.values() for name, _, _ in selection.parts}


def selected_shapes(selections: Mapping[str, Selection], spec: ActionSpec | StateSpec | None) -> Shapes:
    """Shape and dtype of each key: the spec's, or without one float32 of the selection's shape."""
    return spec.fields if spec else {key: (selection.shape, np.float32) for key, selection in selections.items()}


def select(key: str, text: str, shapes: Mapping[str, tuple[int, ...]], unusable: Mapping[str, str],
           shape: tuple[int, ...] | None = None) -> Selection:
    """The selection of `config.fields.KEY=text`.

    Args:
        key: of a spec.
        text: columns, joined by commas, each whole or with components `[i]`, `[i:j]`.
        shapes: of a step's numbers, by column of the data.
        unusable: reasons why other columns cannot be used.
        shape: expected by the spec; None: any.

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
