"""Tables that accompany videos: the rows of a CSV, JSONL or parquet file, each with its line.

    pad.csv      frame,jump         -> Row("pad.csv:2", {"frame": "0", "jump": "1"})
                 0,1                       Row("pad.csv:3", ...)
    pad.jsonl    {"frame": 0, ...}  -> Row("pad.jsonl:1", {"frame": 0, ...})

A number in a CSV is text until `Row.number` converts it.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent_jax.data.bad_data import BadDataError, bad_data
from agent_jax.data.limits import check_unpacked
from agent_jax.json_files import parse_json

# Of Python objects: a row with its dictionary and place, and a value without its text.
_ROW_BYTES, _VALUE_BYTES = 300, 60
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row; `where` is file:line, for a parquet file file:row."""

    where: str
    values: Mapping[str, Any]

    def has(self, column: str) -> bool:
        """Whether the column exists and is not empty."""
        return bool(column) and self.values.get(column) not in (None, "")

    def text(self, column: str) -> str:
        """The value as text, stripped; "" if there is none."""
        return str(self.values[column]).strip() if self.has(column) else ""

    def number(self, column: str) -> float:
        """The value as a finite number; true and false are 1 and 0.

        Raises:
            BadDataError: the column is missing or empty, or holds no finite number.
        """
        value = self.values.get(column)
        if isinstance(value, str):
            value = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value)
        try:
            number = float(value)  # pyright: ignore[reportArgumentType]  # None and lists are refused below
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            found = repr(value) if column in self.values else f"the columns {', '.join(self.values)}"
            raise BadDataError(f"{self.where}: found {found}, expected a finite number in column {column!r}")
        return number

    def whole(self, column: str, most: int) -> int:
        """The value as a whole number from 0 to `most`.

        Raises:
            BadDataError: it is something else.
        """
        number = self.number(column)
        if not 0 <= number <= most or number != int(number):
            raise BadDataError(f"{self.where}: found {column}={number:g}, expected a whole number from 0 to {most}")
        return int(number)


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a file, in order.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is of another kind.
        BadDataError: a line cannot be read, or the rows take more memory than `limits` allows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a table ({', '.join(SUFFIXES)})")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: found a {path.suffix or 'nameless'} file, expected one of {', '.join(SUFFIXES)}")
    return _bounded(readers[path.suffix.lower()](path), path)


def _bounded(rows: Iterator[Row], path: Path) -> Iterator[Row]:
    """The rows, with a bound on their total size: the caller holds all of them at once."""
    taken, packed = 0, path.stat().st_size
    for row in rows:
        taken += _ROW_BYTES + sum(_VALUE_BYTES + len(value) if isinstance(value, (str, bytes)) else _VALUE_BYTES
                                  for value in row.values.values())
        with bad_data():
            check_unpacked(taken, packed, f"{row.where}: the rows up to this one")
        yield row


def read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON object a line; an empty line is skipped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = parse_json(line, f"{path}:{number}")
            except ValueError as error:
                raise BadDataError(f"{error}; expected one object a line") from error
            if not isinstance(values, dict):
                raise BadDataError(f"{path}:{number}: found {type(values).__name__}, expected a JSON object")
            yield Row(f"{path}:{number}", values)


def _read_csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel's CSV begins with a byte-order mark
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            names = [name.strip() for name in next(reader, [])]
            if not names or len(set(names)) != len(names):
                raise BadDataError(f"{path}:1: found the columns {names}, expected a first line of distinct names")
            while True:
                line = reader.line_num + 1  # a quoted field may span several lines
                values = next(reader, None)
                if values is None:
                    return
                if values and len(values) != len(names):
                    raise BadDataError(f"{path}:{line}: found {len(values)} values, expected {len(names)} as in line 1 "
                                       f"({', '.join(names)})")
                if values:
                    yield Row(f"{path}:{line}", dict(zip(names, values, strict=True)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadDataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    from agent_jax.data.prepare.sources.parquet import open_parquet

    number = 0
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=1024):  # a text may occur once in the file and in every row
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}:{number}", values)
