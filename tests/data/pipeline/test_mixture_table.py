from __future__ import annotations

from pathlib import Path

import pytest
from data_stores import (
    BABYAI_FEATURES,
    CAMERAS,
    babyai_domain,
    babyai_episodes,
    babyai_store,
    clip_domain,
    clip_store,
    language_table_domain,
    language_table_store,
)

from agent_jax.data.pipeline.mixture_table import check_labels, mixture_table
from agent_jax.data.pipeline.windows import Windows
from agent_jax.data.store.writer import write_store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AGENT_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_table_shows_each_domain_in_an_epoch_and_in_the_run(tmp_path):
    tiles = Windows(babyai_domain(weight=0.5), babyai_store(tmp_path / "tiles"), "train")
    clips = Windows(clip_domain("label", cameras=CAMERAS, sampling="random"), clip_store(tmp_path / "clips"), "train")
    table = mixture_table([tiles, clips], epochs=3.0)
    assert [line.split() for line in table[:3]] == [
        ["domain", "layout", "actions", "window", "episodes", "frames", "windows", "weight", "share", "epochs"],
        ["babyai", "actions", "babyai", "4/4", "6", "27", "10", "0.5", "45.5%", "1.50"],
        ["clips", "label", "-", "3", "random", "3", "36", "6", "1", "54.5%", "3.00"],
    ]
    assert len({len(line) for line in table[:3]}) == 1  # columns stand below each other
    assert table[3:] == ["  clips: 2 classes; the most frequent, 2, has 83.3% of the windows"]


def test_an_episode_of_several_records_counts_once_with_or_without_its_end(tmp_path):
    records = list(babyai_episodes((4, 4, 3)))
    for record, start in zip(records, (4, 12, 0), strict=True):  # two stretches of a play that ends idle, and another
        record["start"] = start
        record["steps"][-1]["is_last"] = False
    records[1]["episode_id"] = records[0]["episode_id"]
    store = write_store(tmp_path / "set", "tiles", BABYAI_FEATURES, {"train": records}, {})
    table = mixture_table([Windows(babyai_domain(), store, "train")], epochs=1.0)
    assert table[1].split()[4] == "2"
    nameless = Windows(language_table_domain(), language_table_store(tmp_path / "table"), "train").index
    assert nameless.episode_N.tolist() == [0, 1, 2]


def test_a_label_beyond_the_classes_of_the_model_is_refused_with_its_record(tmp_path):
    clips = Windows(clip_domain("label"), clip_store(tmp_path / "clips"), "train")
    check_labels(clips, classes=3)
    with pytest.raises(ValueError, match=r"found class 2 in record 0 of split 'train', expected 0 to 1; raise"):
        check_labels(clips, classes=2)
