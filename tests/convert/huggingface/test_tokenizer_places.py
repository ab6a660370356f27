"""OPT's tokenizer, if it is not in the folder of the weights, is found in the usual places if it fits."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tiny_tokenizers import write_bpe

from agent_jax.convert.huggingface.tokenizer_places import tokenizer_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def weights(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "opt", "vocab_size": 272, **config}))
    return folder


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer with 265 ids."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_bpe(folder)


def test_the_tokenizer_next_to_the_weights_is_preferred(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tokenizer(tmp_path)
    folder = write_tokenizer(weights(tmp_path / "opt"))
    assert tokenizer_of(folder) == str(folder)
    assert not caplog.records


@pytest.mark.parametrize("place", ["parent", "named", "named_on_hub", "family"])
def test_a_tokenizer_in_a_usual_place_is_taken_and_logged(tmp_path: Path, cache: Path, place: str,
                                                              caplog: pytest.LogCaptureFixture) -> None:
    snapshots = {"named_on_hub": "models--me--opt-tuned", "family": "models--facebook--opt-125m"}
    expected = {"parent": tmp_path / "run", "named": tmp_path / "elsewhere"}.get(
        place, cache / snapshots.get(place, "") / "snapshots" / "0123")
    write_tokenizer(expected)
    name = {"named": str(tmp_path / "elsewhere"), "named_on_hub": "me/opt-tuned"}.get(place, "/gone/opt")
    folder = weights(tmp_path / "run" / "checkpoint-10", _name_or_path=name)
    with caplog.at_level(logging.WARNING):
        assert tokenizer_of(folder) == str(expected)
    assert f"took that of {expected}" in caplog.text


def test_a_tokenizer_of_another_size_is_not_taken_and_the_error_lists_the_places(tmp_path: Path, cache: Path) -> None:
    write_tokenizer(tmp_path / "run")
    write_tokenizer(cache / "models--facebook--opt-125m" / "snapshots" / "0123")
    folder = weights(tmp_path / "run" / "checkpoint-10", vocab_size=50272)
    with pytest.raises(FileNotFoundError, match="vocab_size=50272") as error:
        tokenizer_of(folder)
    for text in (f"{tmp_path / 'run'} (2", "models--facebook--opt-125m", "--config.vocabulary.tokenizer",
                 "hf download facebook/opt-125m"):
        assert text in str(error.value)
