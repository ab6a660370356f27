from __future__ import annotations

import pytest

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.instructions import Instructions


def test_config_text_is_used_for_all_recordings(tmp_path):
    assert Instructions(tmp_path, "", PrepareConfig(instruction_text="play")).text("any") == "play"


def test_table_gives_each_recording_its_text(tmp_path):
    (tmp_path / "texts.csv").write_text('name,instruction,other\na,"chop, then dig",x\nb,swim,y\n')
    texts = Instructions(tmp_path, "texts.csv", PrepareConfig())
    assert [texts.text(name) for name in "ab"] == ["chop, then dig", "swim"]
    assert Instructions(tmp_path, "texts.csv", PrepareConfig(instruction="other")).text("b") == "y"
    with pytest.raises(BadDataError, match=r"texts.csv: has no row for the recording 'c'"):
        texts.text("c")


@pytest.mark.parametrize(("rows", "message"), [
    ("a,one\na,two\n", "texts.csv:3: names the recording 'a' again, after .*texts.csv:2"),
    ("a,one\nb,\n", "texts.csv:3: .* neither empty"),
])
def test_empty_text_and_duplicate_recording_are_refused_with_line(tmp_path, rows, message):
    (tmp_path / "texts.csv").write_text("name,instruction\n" + rows)
    with pytest.raises(BadDataError, match=message):
        Instructions(tmp_path, "texts.csv", PrepareConfig())


def test_table_and_config_text_are_mutually_exclusive_and_one_is_required(tmp_path):
    with pytest.raises(ValueError, match="found neither of config.instruction_text and config.options.instructions"):
        Instructions(tmp_path, "", PrepareConfig())
    with pytest.raises(ValueError, match="found both"):
        Instructions(tmp_path, "texts.csv", PrepareConfig(instruction_text="play"))
