"""The steps of a LeRobot episode as numbers and encoded images, out of parquet files that hold one episode or many.

    file-000.parquet   [ row group | row group | ... ]   the groups that hold the episode are read

They are kept for the next episode, as a group may hold hundreds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from agent_jax.data.prepare.sources.lerobot.meta import EpisodeEntry
from agent_jax.data.prepare.sources.lerobot.parquet import column_numbers, read_parquet
from agent_jax.data.prepare.sources.source import BadDataError


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
        self._index = column_numbers(read_parquet(file, ["episode_index"], read), "episode_index", 1, str(file))[:, 0]
        self._bounds = np.cumsum([0, *groups])
        self._file = file
