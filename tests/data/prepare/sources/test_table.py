from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.table import Row, read_table


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_every_table_format_gives_rows_with_their_line(tmp_path):
    csv = written(tmp_path / "a.csv", '\ufefffile,text\na.mp4,"two\nlines"\n\nb.mp4,one\n')
    assert list(read_table(csv)) == [Row(f"{csv}:2", {"file": "a.mp4", "text": "two\nlines"}),
                                     Row(f"{csv}:5", {"file": "b.mp4", "text": "one"})]
    tsv = written(tmp_path / "a.tsv", "file\ttext\na.mp4\tone, two\n")
    assert list(read_table(tsv)) == [Row(f"{tsv}:2", {"file": "a.mp4", "text": "one, two"})]
    jsonl = written(tmp_path / "a.jsonl", '{"file": "a.mp4", "at": 1.5}\n\n{"file": "b.mp4"}\n')
    assert list(read_table(jsonl)) == [Row(f"{jsonl}:1", {"file": "a.mp4", "at": 1.5}),
                                       Row(f"{jsonl}:3", {"file": "b.mp4"})]
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"frame": [0, 1], "down": [True, False]}), parquet)
    assert list(read_table(parquet)) == [Row(f"{parquet}:1", {"frame": 0, "down": True}),
                                         Row(f"{parquet}:2", {"frame": 1, "down": False})]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.csv", "file,text\na.mp4\n", "a.csv:2: found 1 values, expected 2"),
    ("a.csv", "file,file\na,b\n", "a.csv:1: found the columns .* distinct"),
    ("a.csv", 'file,text\na,"b\n', "a.csv: cannot be read as CSV"),
    ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl:2: is not JSON"),
    ("a.jsonl", "[1]\n", "a.jsonl:1: found list, expected a JSON object"),
    ("a.parquet", "PAR1 is not enough", "a.parquet: cannot be read as parquet"),
])
def test_unreadable_line_is_reported(tmp_path, name, text, message):
    with pytest.raises(BadDataError, match=message):
        list(read_table(written(tmp_path / name, text)))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_beyond_the_memory_bound_are_refused(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"file": ["a" * 99] * 4000}), path)
    else:
        path.write_text("file\n" + "a\n" * 4000 if suffix == ".csv" else '{"a": 1}\n' * 4000)
    assert len(list(read_table(path))) == 4000
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "1")
    with pytest.raises(BadDataError, match=rf"a{suffix}:\d+: the rows up to this one: .*1 MB .*MAX_READ_MB=2"):
        list(read_table(path))


def test_damaged_parquet_file_is_bad_data(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"frame": [0, 1], "text": ["one", "two"]}), path)
    whole = path.read_bytes()
    refused = 0
    for place in range(4, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            list(read_table(path))
        except BadDataError:
            refused += 1
    assert refused > 20


def test_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a.xlsx: found a .xlsx file, expected one of .csv"):
        read_table(written(tmp_path / "a.xlsx", ""))
    with pytest.raises(FileNotFoundError, match=r"b.csv: not found"):
        read_table(tmp_path / "b.csv")


def test_numbers_are_parsed_from_text_and_other_values_refused_with_line():
    row = Row("a.csv:7", {"a": " 1.5", "b": "True", "c": 2, "d": "", "e": "nan", "f": "one", "g": None, "h": False})
    assert [row.number(column) for column in "abch"] == [1.5, 1.0, 2.0, 0.0]
    for column in "defgz":
        with pytest.raises(BadDataError, match=f"a.csv:7: found .* expected a finite number in column '{column}'"):
            row.number(column)
