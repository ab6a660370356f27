from __future__ import annotations

import math

import pytest

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.video.text_pairs import Pair, PairTable, VideoTextOptions


def table(tmp_path, text, **options):
    (tmp_path / "table.csv").write_text(text)
    return PairTable(tmp_path / "table.csv", VideoTextOptions(**options), "A video of")


def read_texts(tmp_path, text, **options):
    made = table(tmp_path, text, **options)
    return [(pair.instruction, pair.answer, pair.label) for row in made.rows for pair in made.pairs(row)]


def test_captions_questions_and_labels_become_pairs(tmp_path):
    assert read_texts(tmp_path, "file,caption\na,a dog runs\n") == [("A video of", "a dog runs", -1)]
    assert read_texts(tmp_path, "file,question,answer\na,who?,a dog\n") == [("who?", "a dog", -1)]
    assert read_texts(tmp_path, "file,label\na,3\nb,0\n") == [("A video of", "", 3), ("A video of", "", 0)]
    assert read_texts(tmp_path, "file,caption,question,answer,label\na,a dog,who?,it,1\nb,,why?,so,0\n") == [
        ("A video of", "a dog", 1), ("who?", "it", 1), ("why?", "so", 0)]


def test_options_name_columns_and_order_classes(tmp_path):
    assert read_texts(tmp_path, "clip,rass\na,-5\nb,0\n", file="clip", label="rass", classes=("-5", "-4", "0")) == [
        ("A video of", "", 0), ("A video of", "", 2)]


def test_stretch_is_in_seconds_and_defaults_to_the_whole_video(tmp_path):
    made = table(tmp_path, "file,caption,start,stop\na.mp4,x,1.5,3\na.mp4,y,,\n")
    first, second = (pair for row in made.rows for pair in made.pairs(row))
    assert first == Pair(tmp_path / "a.mp4", 1.5, 3.0, "A video of", "x", -1)
    assert (second.start_s, second.stop_s) == (0.0, math.inf)


@pytest.mark.parametrize(("text", "options", "message"), [
    ("file,caption\na,x\nb, \n", {}, "table.csv:3: found no text"),
    ("file,question,answer\na,who?,\n", {}, "table.csv:2: found the question 'who\\?' and the answer ''"),
    ("file,label\na,calm\n", {}, "table.csv:2: .* in column 'label'"),
    ("file,label\na,1.5\n", {}, "table.csv:2: found label=1.5, expected a whole number from 0"),
    ("file,label\na,1e300\n", {}, "table.csv:2: found label=1e\\+300, expected a whole number from 0"),
    ("file,label\na,-1\n", {}, "table.csv:2: found label=-1"),
    ("file,label\na,angry\n", {"classes": ("calm", "sad")}, "found label='angry', expected one of calm, sad"),
    ("file,caption,start,stop\na,x,3,2\n", {}, "table.csv:2: found start=3 and stop=2"),
    ("file,caption,start\na,x,one\n", {}, "table.csv:2: found 'one', expected a finite number in column 'start'"),
])
def test_wrong_row_is_reported(tmp_path, text, options, message):
    with pytest.raises(BadDataError, match=message):
        read_texts(tmp_path, text, **options)


@pytest.mark.parametrize(("text", "options", "message"), [
    ("video,caption\na,x\n", {}, "found the columns caption, video, expected 'file' and 'caption'"),
    ("file,question\na,x\n", {}, "expected .* 'question' and 'answer'"),
    ("file\na\n", {}, "or 'label'; name others by config.options.file"),
    ("file,caption\na,x\n", {"group": "patient"}, "expected 'patient' .config.options.group"),
])
def test_table_without_required_columns_is_refused(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text, **options)


def test_rows_are_grouped_by_file_or_by_the_chosen_column(tmp_path):
    text = "file,caption,patient,split\na,x,p,train\nb,y,q,test\nc,z,p,train\n"
    assert {name: len(rows) for name, rows in table(tmp_path, text).groups().items()} == {"a": 1, "b": 1, "c": 1}
    twice = "file,caption\nb/a.mp4,x\n./b/a.mp4,y\nb//c/../a.mp4,z\n"
    assert {name: len(rows) for name, rows in table(tmp_path, twice).groups().items()} == {"b/a.mp4": 3}
    made = table(tmp_path, text, group="patient")
    groups = made.groups()
    assert {name: [row.text("file") for row in rows] for name, rows in groups.items()} == {"p": ["a", "c"], "q": ["b"]}
    assert [made.split(rows) for rows in groups.values()] == ["train", "test"]
    with pytest.raises(BadDataError, match="table.csv:3: found the splits 'test', 'train' for one recording"):
        made.split(made.rows[:2])
    with pytest.raises(BadDataError, match="table.csv:2: found nothing in column 'file'"):
        table(tmp_path, "file,caption\n,x\n").groups()
