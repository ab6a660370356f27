"""The steps of a LeRobot episode as numbers and encoded images, out of parquet files that hold one episode or many.

    file-000.parquet   [ row group | row group | ... ]   the groups that hold the episode are read, and kept
                                                         for the next one, as a group may hold hundreds
A column of a spec's key may be several, joined, or a part of one: `observation.state[0:7]`, `arm,gripper`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from agent_jax.data.sources.lerobot_meta import EpisodeEntry, read_parquet
from agent_jax.data.sources.source import BadDataError

_PART = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<first>\d+)(?P<range>:(?P<stop>\d+))?\])?")


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a key's values are made of."""

    shape: tuple[int, ...]
    parts: tuple[tuple[str, int, int], ...]  # feature, first component, component after the last

    def values(self, numbers: Mapping[str, np.ndarray]) -> np.ndarray:
        """(steps, *shape) out of the columns."""
        joined = np.concatenate([numbers[name][:, first:stop] for name, first, stop in self.parts], axis=1)
        return joined.reshape(-1, *self.shape)


def select(key: str, text: str, features: Mapping[str, tuple[int, ...]],
           shape: tuple[int, ...] | None = None) -> Selection:
    """The selection that `config.fields.KEY=text` means.

    Args:
        key: of a spec.
        text: features, joined by commas, each whole or with components `[i]`, `[i:j]`.
        features: shape by name.
        shape: that the spec expects; None: whatever it is.

    Raises:
        ValueError: no such feature or component, or another size than the spec expects.
    """
    where = f"config.fields.{key}={text!r}"
    parts = []
    for piece in text.split(","):
        match = _PART.fullmatch(piece.strip())
        name = match["name"] if match else piece
        if match is None or name not in features:
            raise ValueError(f"{where}: no feature {name!r} that holds numbers; expected one of {', '.join(features)}, "
                             "or a part such as FEATURE[0:3]")
        if len(features[name]) != 1:
            raise ValueError(f"{where}: {name!r} has shape {list(features[name])}, expected a vector")
        size = features[name][0]
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


class EpisodeTables:
    """Reads the rows of one episode after another."""

    def __init__(self, columns: list[str]):
        """`columns` are read, and no others."""
        self._columns = columns
        self._file: Path | None = None
        self._index = np.zeros(0, np.int64)  # episode of each row of the file
        self._bounds = np.zeros(0, np.int64)  # first row of each row group, and the number of rows
        self._groups: tuple[int, int] | None = None
        self._table: pa.Table | None = None

    def rows(self, entry: EpisodeEntry) -> pa.Table:
        """The rows of an episode, in order.

        Raises:
            BadDataError: the file is missing or damaged, or holds another number of rows of the episode than `meta`
                says, or they do not follow each other.
        """
        if entry.table != self._file:
            self._open(entry.table)
        rows = np.flatnonzero(self._index == entry.index)
        if len(rows) != entry.length or not len(rows):
            raise BadDataError(f"{entry.table}: found {len(rows)} rows of episode {entry.index}, but the meta data say "
                               f"{entry.length}")
        if rows[-1] - rows[0] + 1 != len(rows):
            raise BadDataError(f"{entry.table}: the rows of episode {entry.index} do not follow each other")
        first = int(np.searchsorted(self._bounds, rows[0], "right")) - 1
        last = int(np.searchsorted(self._bounds, rows[-1], "right")) - 1
        table = self._table if self._groups == (first, last) else None
        if table is None:
            self._groups = self._table = None  # not both in memory at a time
            table = read_parquet(entry.table, self._columns,
                                 lambda content: content.read_row_groups([*range(first, last + 1)], self._columns))
            self._groups, self._table = (first, last), table
        return table.slice(int(rows[0] - self._bounds[first]), len(rows))

    def _open(self, file: Path) -> None:
        groups: list[int] = []

        def read(content: pq.ParquetFile) -> pa.Table:
            groups.extend(content.metadata.row_group(i).num_rows for i in range(content.num_row_groups))
            return content.read(["episode_index"])

        self._file, self._groups, self._table = None, None, None
        self._index = read_parquet(file, ["episode_index"], read)["episode_index"].to_numpy()
        self._bounds = np.cumsum([0, *groups])
        self._file = file


def column_numbers(table: pa.Table, name: str, size: int, where: str) -> np.ndarray:
    """(steps, size), the numbers of a column of scalars or lists.

    Raises:
        BadDataError: a value is missing, has another size, or is not finite; names the row.
    """
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no rows, or too many for one
        column = pa.concat_arrays(column.chunks)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise BadDataError(f"{where}, row {row}: {name!r} is missing")
    if pa.types.is_nested(column.type):
        # pyarrow makes its functions as it is imported.
        lengths: np.ndarray = pc.list_value_length(column).to_numpy(  # pyright: ignore[reportAttributeAccessIssue]
            zero_copy_only=False)
        if np.any(lengths != size):
            row = int(np.flatnonzero(lengths != size)[0])
            raise BadDataError(f"{where}, row {row}: {name!r} has {lengths[row]} numbers, expected {size}")
        column = column.flatten()
    elif size != 1:
        raise BadDataError(f"{where}: {name!r} holds one number a step, expected {size}")
    flat = column.to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "biuf":
        raise BadDataError(f"{where}: {name!r} holds {column.type}, expected numbers")
    numbers = flat.reshape(len(table), size)
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(bad):
        raise BadDataError(f"{where}, row {bad[0]}: {name!r} is {numbers[bad[0]].tolist()}, expected finite numbers")
    return numbers
