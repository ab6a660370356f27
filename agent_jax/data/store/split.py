"""Random access to the records of a split."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from agent_jax.data.store.episode import REPAIR, Episode, RecordError
from agent_jax.data.store.schema import Field, length_field
from agent_jax.data.store.tfds_folder import SplitFiles


@dataclasses.dataclass(frozen=True)
class _File:
    """A file and the range of records to read; array_record expects these names."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Split:
    """Random access to the episodes of a split; cheap to pickle."""

    def __init__(self, files: SplitFiles, where: str, fields: Mapping[str, Field]):
        """Open the files of a split; `where` names the data set in messages."""
        self.name, self.fields = files.name, fields
        self._files = files
        parts: Any = [_File(str(file), 0, records, records)
                      for file, records in zip(files.files, files.records, strict=True) if records]
        self._source = ArrayRecordDataSource(parts)
        self._length_field = length_field(fields, where)

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Episode]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Episode:
        return self.parse(self.serialized(number), number)

    def parse(self, serialized: bytes, number: int) -> Episode:
        """The episode of a record's bytes; raises RecordError."""
        return Episode(serialized, self._where(number), self.fields, self._length_field)

    def serialized(self, number: int) -> bytes:
        """The bytes of a record: a tf.train.Example.

        Raises:
            IndexError: the split has fewer records.
            RecordError: the record cannot be read.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        try:
            return bytes(self._source[number])
        except (OSError, ValueError, IndexError, RuntimeError) as error:  # of array_record
            raise RecordError(f"{self._where(number)}: cannot be read ({error}). {REPAIR}") from error

    def _where(self, number: int) -> str:
        ends = itertools.accumulate(self._files.records)
        file = next(file for file, end in zip(self._files.files, ends, strict=True) if number < end)
        return f"{file}, split {self.name!r}, record {number}"
