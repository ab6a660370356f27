"""The data of a run: domains in the order of their names, rows of both splits, and errors on opening."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from data_stores import arm_store
from small_runs import listing, small_config, store_directory

from agent_jax.config import DataConfig, DomainConfig, VocabularyConfig, from_config_dict, presets
from agent_jax.data.pipeline.loader import PackedRows
from agent_jax.data.pipeline.run_data import open_data


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
    assert config.with_vocabulary_size(data.vocabulary.size).model.language.vocabulary_size == data.vocabulary.size
    assert "  tiles " in data.summary()


def test_collected_demonstrations_replace_an_empty_path(store: Path):
    config = small_config(store, **{"data.domains.tiles.path": ""})
    with pytest.raises(ValueError, match="--config.data.domains.tiles.path=DIR"):
        open_data(config)
    assert open_data(config, {"tiles": store}).train.counts == open_data(small_config(store)).train.counts


def test_validation_repeats_the_same_batches_with_all_visual_tokens(store: Path):
    config = small_config(store, **{"model.visual_tokens": "visible"})
    data = open_data(config)
    one, two = (list(data.validation_batches(config)) for _ in range(2))
    assert len(one) == len(two) == 1
    np.testing.assert_array_equal(one[0].token_BS, two[0].token_BS)
    assert one[0].frames_BFHWC.shape[0] == config.train.batch_size
    assert one[0].visual_BS.max() == 2 * (1 + 4) - 1  # two images of a CLS and four patches
    rows = [data.train.row(0, number) for number in range(len(data.train.plan(0)))]
    assert max(row["visual_BS"].max() for row in rows) == 2 * (1 + 1) - 1  # in training: a CLS and the visible patch


def test_the_first_validation_rows_read_no_other_rows(
        store: Path, monkeypatch: pytest.MonkeyPatch):
    config = small_config(store)
    data = open_data(config)
    batch = next(data.validation_batches(config))
    read: list[int] = []
    row = PackedRows.row
    monkeypatch.setattr(PackedRows, "row", lambda self, epoch, number: read.append(number) or row(self, epoch, number))
    three = data.first_validation_rows(config, 3)
    assert read == [0, 1, 2]
    np.testing.assert_array_equal(three.token_BS, batch.token_BS[:3])
    np.testing.assert_array_equal(three.frames_BFHWC, batch.frames_BFHWC[:3])
    assert len(data.first_validation_rows(config, 99).seed_B) == config.train.batch_size


def test_a_directory_without_a_data_set_is_refused_and_unchanged(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
        open_data(small_config(tmp_path))
    assert listing(tmp_path) == before


def test_a_run_without_data_sets_is_refused():
    with pytest.raises(ValueError, match="config.data.domains: empty"):
        open_data(dataclasses.replace(small_config(Path("x")), data=DataConfig()))


def test_a_custom_block_is_made_of_the_specs_of_the_data_sets(tmp_path: Path):
    own = presets.state_spec("two", names=("x",), key="state", low=0, high=1, count=3, block="mine")
    one = arm_store(tmp_path / "one", [np.zeros((4, 1))])
    two = arm_store(tmp_path / "two", [np.zeros((4, 1))], metadata={"state_spec": own})  # not in the config
    domains = {
        name: DomainConfig(path=str(store.directory), window=2, stride=2, max_text=16, action_spec=presets.arm_spec(
            name, names=(f"d{name}",), low=-1, high=1, count=3, block="mine"))
        for name, store in (("two", two), ("one", one))}
    config = dataclasses.replace(small_config(tmp_path), data=DataConfig(domains=domains),
                                 vocabulary=VocabularyConfig(blocks=("babyai", "mine")))
    data = open_data(config)
    assert data.vocabulary.blocks[1].tokens == (
        "STARTACTION", "ENDOFACTION", "done_0", "done_1", "done_2", "dtwo_0", "dtwo_1", "dtwo_2",
        "STARTSTATE", "ENDOFSTATE", "state x_0", "state x_1", "state x_2")
    assert "states of two: two" in data.summary()
    unknown = dataclasses.replace(config, vocabulary=VocabularyConfig(blocks=("mine", "your")))
    with pytest.raises(ValueError, match="config.vocabulary.blocks: found 'your'"):
        open_data(unknown)
    missing = dataclasses.replace(config, vocabulary=VocabularyConfig(blocks=("babyai",)))
    with pytest.raises(ValueError, match="vocabulary has no block 'mine'.* config.vocabulary.blocks"):
        open_data(missing)


def test_the_config_of_an_arm_in_the_guide_opens(root: Path, tmp_path: Path):
    text = (root / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "arm_spec" in block]
    rng = np.random.default_rng(0)
    arm_store(tmp_path / "set", [rng.uniform(0, 0.05, (8, 4))], [rng.normal(size=(8, 3))])
    example = example.replace('"DIR"', repr(str(tmp_path / "set")))
    made = presets.build("", {"": [lambda config: exec(example, {"config": config, "presets": presets})]})
    assert "states of my_arm" in open_data(from_config_dict(made)).summary()


def test_processes_compare_windows_and_specs_of_their_data(store: Path):
    config = small_config(store)
    fewer = small_config(store, **{"data.domains.tiles.stride": 3})
    one, other = open_data(config).facts(), open_data(fewer).facts()
    assert {"windows of tiles", "specs and fields of tiles"} == {name for name in one if one[name] != other[name]}
    assert {"vocabulary", "row", "specs and fields of tiles"} < one.keys()
