"""Scores of generated texts: those of the libraries over the texts that were generated, next to the most frequent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_stores import clip_domain, clip_store
from packed_rows import random_params
from sacrebleu import corpus_bleu
from tiny_checkpoints import make_checkpoint, tiny_config

from agent_jax.data.images import prepare_image
from agent_jax.evaluate.__main__ import main
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.generated_text import _add, defined
from agent_jax.evaluate.offline import evaluate_offline, format_scores
from agent_jax.evaluate.recording_sums import RecordingSums
from agent_jax.policy import Policy


def test_texts_of_a_split_are_those_that_the_policy_says(tmp_path: Path):
    domain = clip_domain("answer")
    config = tiny_config(domain.vocabulary, ["clips"], image_size=16)
    params, store = random_params(config.model), clip_store(tmp_path / "clips", (6, 3, 9), (4, 2))
    policy = Policy(config, params, domain)
    trained = TrainedRun(tmp_path, 0, config, {"clips": domain})
    found = evaluate_offline(trained, params, domain, data=str(store.directory), policy=policy)
    assert found.generated is not None
    assert found.generated.texts == found.windows == 3
    assert [(one.prompt, one.answer) for one in found.generated.answers] == [("", "a nurse")] * 2 + [("who?", "nobody")]
    assert found.generated.baseline["exact"] == 1.0  # the test split's answers are the training split's
    records = store.split("test")
    images = np.stack([prepare_image(image, 0) for image in records[0].values("steps/observation/front", 0, 3)])
    assert found.generated.answers[0].generated == policy.say([images], [""])[0].text
    assert found.generated.metrics["exact"] == 0.0  # of random parameters
    assert set(found.generated.intervals) >= {"exact", "rouge_l"}
    text = format_scores([found])
    assert "clips, generated: 3 texts, exact 0.00% (most frequent text 100.00%)" in text
    assert "'who?' -> " in text
    few = evaluate_offline(trained, params, domain, data=str(store.directory), policy=policy, rows_limit=1)
    assert few.generated is not None
    assert few.generated.texts == 1


def test_metrics_are_those_of_the_libraries():
    pairs = [("the red ball moves left", "the red ball moves right"), ("two", "two"), ("", "a box"),
             ("a blue key comes first of all", "a blue key comes first")]
    sums = RecordingSums()
    for number, (text, answer) in enumerate(pairs):
        _add(sums, number // 2, text, answer)
    metrics = sums.metrics()
    assert metrics["exact"] == 0.25
    assert metrics["bleu4"] == pytest.approx(corpus_bleu([text for text, _ in pairs], [[a for _, a in pairs]]).score)
    assert metrics["rouge_l"] == pytest.approx(100 * (0.8 + 1.0 + 0.0 + 2 * 5 / 12) / 4)  # 2 LCS / (words of both)
    low, high = sums.intervals()["exact"]
    assert (low, high) == (0.0, 0.5)


def test_short_answers_have_no_bleu():
    sums = RecordingSums()
    _add(sums, 0, "left", "left")
    assert set(defined(sums, sums.metrics())) == {"exact", "rouge_l"}


def test_the_command_writes_all_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_checkpoint(tmp_path / "run", ("caption", "table"), domain_fields={"cameras": ("steps/observation/front",)})
    store = clip_store(tmp_path / "clips")
    assert main(["offline", "--checkpoint", str(tmp_path / "run"), "--domain", "caption", "--free_running",
                 "--data", f"caption={store.directory}", "--json", str(tmp_path / "scores.json")]) == 0
    (scores,) = json.loads((tmp_path / "scores.json").read_text())["domains"]
    assert [one["answer"] for one in scores["generated"]["answers"]] == ["a nurse"] * 2
    assert "caption, generated: 2 texts, exact 0.00% (most frequent text 100.00%)" in capsys.readouterr().out
