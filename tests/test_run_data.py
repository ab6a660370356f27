"""The data of a run: domains in the order of their names, rows of both splits, and what cannot be opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_runs import listing, small_config, store_directory

from agent_jax.config import DataConfig
from agent_jax.run_data import open_data, with_vocabulary


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_directory(tmp_path_factory.getbasetemp())


def test_domains_are_numbered_by_name_and_share_the_vocabulary(store: Path):
    config = small_config(store)
    tiles = config.data.domains["tiles"]
    two = dataclasses.replace(config, data=DataConfig(domains={"tiles": tiles, "again": tiles}))
    data = open_data(two)
    assert [(domain.name, domain.index) for domain in data.domains] == [("again", 0), ("tiles", 1)]
    assert len(data.train.counts) == 2
    assert with_vocabulary(config, data.vocabulary).model.language.vocabulary_size == data.vocabulary.size
    assert "  tiles: " in data.summary()


def test_the_gathered_demonstrations_stand_in_for_a_path_that_is_not_given(store: Path):
    config = small_config(store, **{"data.domains.tiles.path": ""})
    with pytest.raises(ValueError, match="--config.data.domains.tiles.path=DIR"):
        open_data(config)
    assert open_data(config, store).train.counts == open_data(small_config(store)).train.counts


def test_validation_is_the_same_batches_every_time_laid_out_for_all_visual_tokens(store: Path):
    config = small_config(store, **{"model.visual_tokens": "visible"})
    data = open_data(config)
    one, two = (list(data.validation_batches(config)) for _ in range(2))
    assert len(one) == len(two) == 1
    np.testing.assert_array_equal(one[0].token_BS, two[0].token_BS)
    assert one[0].frames_BFHWC.shape[0] == config.train.batch_size
    assert one[0].visual_BS.max() == 2 * (1 + 4) - 1  # two images of a CLS and four patches
    rows = [data.train.row(0, number) for number in range(len(data.train.plan(0)))]
    assert max(row["visual_BS"].max() for row in rows) == 2 * (1 + 1) - 1  # in training, of a CLS and what is unmasked


def test_a_directory_that_is_no_data_set_is_refused_and_left_as_it_is(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
        open_data(small_config(tmp_path))
    assert listing(tmp_path) == before


def test_a_run_without_data_sets_is_refused():
    with pytest.raises(ValueError, match="config.data.domains: empty"):
        open_data(dataclasses.replace(small_config(Path("x")), data=DataConfig()))
