"""Row sizes from the config alone are never smaller than those with the data."""

import dataclasses

import pytest
from config_files import load_config

from agent_jax.config import Config, DataConfig, DomainConfig, from_config_dict
from agent_jax.data.pipeline.run_data import open_data
from agent_jax.plan.row import OPT_TEXT_IDS, planned_row


def test_a_planned_row_is_as_large_as_every_row_of_the_data(root, language_table_data):
    config = from_config_dict(load_config(root, "language_table.py",
                                   f"--config.data.domains.language_table.path={language_table_data}"))
    planned, found = planned_row(config), open_data(config)
    assert planned.config.model.language.vocabulary_size == found.vocabulary.size
    for name in ("frames", "image_size"):
        assert getattr(planned.size, name) == getattr(found.size, name)
    assert planned.size.slots >= found.size.slots
    assert planned.size.targets >= found.size.targets
    assert planned.size.slots < 1.5 * found.size.slots


def test_text_ids_are_those_of_the_flag_else_of_the_tokenizer_else_of_opt(root):
    config = from_config_dict(load_config(root, "tpu_v4.py", "--config.vocabulary.tokenizer=bytes"))
    sizes = {}
    for name, tokenizer, text_ids in (("bytes", "bytes", 0), ("opt", "/nowhere", 0), ("flag", "/nowhere", 1_000)):
        one = dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, tokenizer=tokenizer))
        row = planned_row(one, text_ids)
        sizes[name] = row.config.model.language.vocabulary_size
        assert any("text:" in note for note in row.notes) == (name != "bytes")
    assert sizes == {"bytes": 260 + 1_313, "opt": OPT_TEXT_IDS + 1_313, "flag": 1_000 + 1_313}


def test_notes_name_what_only_the_data_have(root):
    row = planned_row(from_config_dict(load_config(root, "tpu_v4.py")))
    assert any("no StateSpec in the config for bleeding_edge, calvin, minecraft" in note for note in row.notes)
    none = Config(data=DataConfig(domains={"mine": DomainConfig()}))
    assert any("its ActionSpec is in the data" in note for note in planned_row(none).notes)


def test_a_config_without_data_sets_or_with_too_long_windows_is_refused():
    with pytest.raises(ValueError, match=r"config\.data\.domains: empty"):
        planned_row(Config())
    with pytest.raises(ValueError, match="domain 'mine': a window takes .* positions"):
        planned_row(Config(data=DataConfig(domains={"mine": DomainConfig(window=40)})))
