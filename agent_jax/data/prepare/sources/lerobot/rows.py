"""Reads the rows of a LeRobot episode from parquet files that hold one episode or many.

    file-000.parquet   [ row group | row group | ... ]   only the groups that hold the episode are read

The groups stay cached for the next episode, since a group may hold hundreds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.lerobot.meta import EpisodeEntry
from agent_jax.data.prepare.sources.parquet import column_numbers, open_parquet


class EpisodeTables:
    """Reads the given columns of one episode after another."""

    def __init__(self, columns: list[str]):
        self._columns = columns
        self._file: Path | None = None
        self._index = np.zeros(0, np.int64)  # episode of each row of the file
        self._bounds = np.zeros(0, np.int64)  # first row of each row group, and the number of rows
        self._groups: tuple[int, int] | None = None
        self._table: pa.Table | None = None

    def rows(self, entry: EpisodeEntry) -> pa.Table:
        """The rows of an episode, in order.

        Raises:
            BadDataError: the file is missing or damaged, the number of the episode's rows is not that of the metadata,
                or other rows lie between them.
        """
        if entry.table != self._file:
            self._open(entry.table)
        rows = np.flatnonzero(self._index == entry.index)
        if len(rows) != entry.length or not len(rows):
            raise BadDataError(f"{entry.table}: found {len(rows)} rows of episode {entry.index}, but the metadata say "
                               f"{entry.length}")
        if rows[-1] - rows[0] + 1 != len(rows):
            raise BadDataError(f"{entry.table}: the rows of episode {entry.index} do not follow each other")
        first = int(np.searchsorted(self._bounds, rows[0], "right")) - 1
        last = int(np.searchsorted(self._bounds, rows[-1], "right")) - 1
        table = self._table if self._groups == (first, last) else None
        if table is None:
            self._groups = self._table = None  # frees the old table before the new one is read
            with open_parquet(entry.table, self._columns) as content:
                table = content.read_row_groups([*range(first, last + 1)], self._columns)
            self._groups, self._table = (first, last), table
        return table.slice(int(rows[0] - self._bounds[first]), len(rows))

    def _open(self, file: Path) -> None:
        self._file, self._groups, self._table = None, None, None
        with open_parquet(file, ["episode_index"]) as content:
            sizes = [content.metadata.row_group(i).num_rows for i in range(content.num_row_groups)]
            table = content.read(["episode_index"])
        self._index = column_numbers(table, "episode_index", 1, str(file))[:, 0]
        self._bounds = np.cumsum([0, *sizes])
        self._file = file
