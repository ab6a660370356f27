"""Parquet files and their columns as numbers and texts; errors name the file, the column and the row."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from agent_jax.data.bad_data import BadDataError


@contextlib.contextmanager
def open_parquet(file: Path, columns: Collection[str] = ()) -> Iterator[pq.ParquetFile]:
    """A parquet file that has all `columns`, open to be read.

    Raises:
        BadDataError: it is missing, damaged (also if found only while it is read) or lacks a column; names it.
        OSError: the operating system could not read it, which does not mean that it is damaged.
    """
    if not file.is_file():
        raise BadDataError(f"{file}: not found; copy the data again")
    try:
        with pq.ParquetFile(file) as content:
            there = content.schema_arrow.names
            for column in columns:
                if column not in there:
                    raise BadDataError(f"{file}: has no column {column!r}; it has {', '.join(there)}")
            yield content
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno:  # no permission, too many open files
            raise
        raise BadDataError(f"{file}: cannot be read as parquet ({error}); the file is damaged or cut off") from error


def parquet_table(file: Path, columns: list[str] | None = None, optional: Collection[str] = ()) -> pa.Table:
    """A whole parquet file, or its `columns` and those of the `optional` ones that it has; errors as `open_parquet`."""
    with open_parquet(file, columns or ()) as content:
        more = [name for name in content.schema_arrow.names if name in optional]
        return content.read(None if columns is None else [*columns, *more])


def column_numbers(table: pa.Table, name: str, size: int, where: str) -> np.ndarray:
    """(steps, size), the numbers of a column of scalars or lists.

    Raises:
        BadDataError: a value is missing, has another size, or is not finite; names the row.
    """
    try:
        column = table[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # no rows, or too many for one array
            column = pa.concat_arrays(column.chunks)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise BadDataError(f"{where}, row {row}: {name!r} is missing")
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or \
                pa.types.is_fixed_size_list(column.type):
            # pyarrow defines its functions at import.
            lengths: np.ndarray = pc.list_value_length(column).to_numpy(  # pyright: ignore[reportAttributeAccessIssue]
                zero_copy_only=False)
            if np.any(lengths != size):
                row = int(np.flatnonzero(lengths != size)[0])
                raise BadDataError(f"{where}, row {row}: {name!r} has {lengths[row]} numbers, expected {size}")
            column = column.flatten()
        elif size != 1:
            raise BadDataError(f"{where}: {name!r} holds {column.type} at each step, expected {size} numbers")
        flat = column.to_numpy(zero_copy_only=False)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise BadDataError(f"{where}: {name!r} cannot be read as numbers ({error})") from error
    if flat.dtype.kind not in "biuf":
        raise BadDataError(f"{where}: {name!r} holds {column.type}, expected numbers")
    numbers = flat.reshape(len(table), size)
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if len(bad):
        raise BadDataError(f"{where}, row {bad[0]}: {name!r} is {numbers[bad[0]].tolist()}, expected finite numbers")
    return numbers


def column_whole(table: pa.Table, name: str, where: str, most: int) -> list[int]:
    """The whole numbers, from 0 to `most`, of a column of scalars.

    Raises:
        BadDataError: as `column_numbers`, or a number is not one of these.
    """
    numbers = column_numbers(table, name, 1, where)[:, 0]
    wrong = np.flatnonzero((numbers < 0) | (numbers > most) | (numbers != np.floor(numbers)))
    if len(wrong):
        raise BadDataError(f"{where}, row {wrong[0]}: {name!r} is {numbers[wrong[0]]}, expected a whole number from 0 "
                           f"to {most}")
    return [int(number) for number in numbers]


def column_texts(table: pa.Table, name: str, where: str) -> list[str]:
    """The texts of a column; "" where one is missing.

    Raises:
        BadDataError: the column holds something else, or a text that is not UTF-8.
    """
    column = table[name]
    if not is_text(column.type):
        raise BadDataError(f"{where}: {name!r} holds {column.type}, expected texts")
    try:
        return [text or "" for text in column.to_pylist()]
    except UnicodeDecodeError as error:
        raise BadDataError(f"{where}: {name!r} holds a text that is not UTF-8 ({error})") from error


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of that type holds texts."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(plain) or pa.types.is_large_string(plain)
