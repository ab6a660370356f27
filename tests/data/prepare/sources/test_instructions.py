from __future__ import annotations

import pytest

from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.instructions import Instructions
from agent_jax.data.prepare.sources.source import BadDataError


def test_one_text_serves_all_recordings(tmp_path):
    assert Instructions(tmp_path, "", PrepareConfig(instruction_text="play")).of("any") == "play"


def test_a_table_gives_each_recording_its_own_text(tmp_path):
    (tmp_path / "texts.csv").write_text('name,instruction,other\na,"chop, then dig",x\nb,swim,y\n')
    texts = Instructions(tmp_path, "texts.csv", PrepareConfig())
    assert [texts.of(name) for name in "ab"] == ["chop, then dig", "swim"]
    assert Instructions(tmp_path, "texts.csv", PrepareConfig(instruction="other")).of("b") == "y"
    with pytest.raises(BadDataError, match=r"texts.csv: has no row for the recording 'c'"):
        texts.of("c")


@pytest.mark.parametrize(("rows", "words"), [
    ("a,one\na,two\n", "texts.csv:3: names the recording 'a' again, after .*texts.csv:2"),
    ("a,one\nb,\n", "texts.csv:3: .* neither empty"),
])
def test_an_empty_text_and_a_recording_named_twice_are_refused_by_line(tmp_path, rows, words):
    (tmp_path / "texts.csv").write_text("name,instruction\n" + rows)
    with pytest.raises(BadDataError, match=words):
        Instructions(tmp_path, "texts.csv", PrepareConfig())


def test_neither_and_both_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found neither of config.instruction_text and config.options.instructions"):
        Instructions(tmp_path, "", PrepareConfig())
    with pytest.raises(ValueError, match="found both"):
        Instructions(tmp_path, "texts.csv", PrepareConfig(instruction_text="play"))
