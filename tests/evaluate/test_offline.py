from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from data_stores import BABYAI_FEATURES, babyai_episodes, clip_domain, clip_store, game_store
from packed_rows import random_params
from small_runs import Trained, copied, flip_a_bit, straight_run
from tiny_checkpoints import make_checkpoint, tiny_config

from agent_jax.data.pipeline.layout import lay_out, stack
from agent_jax.data.store.writer import write_store
from agent_jax.evaluate.__main__ import main
from agent_jax.evaluate.action_accuracy import ActionAccuracy, BinError, ButtonScore
from agent_jax.evaluate.checkpoints import TrainedRun, data_paths
from agent_jax.evaluate.offline import (
    ClassScores,
    DomainScores,
    TokenScores,
    evaluate_offline,
    format_scores,
    forwards,
)
from agent_jax.models.agent import Agent


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return straight_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def trained(straight: Trained) -> TrainedRun:
    return TrainedRun.load(straight.workdir)


@pytest.fixture(scope="module")
def scores(trained: TrainedRun) -> DomainScores:
    return evaluate_offline(trained, trained.params(), trained.domain())


def test_accuracy_and_perplexity_equal_those_of_the_runs_validation(straight: Trained, scores: DomainScores) -> None:
    assert straight.validation is not None
    losses = straight.validation.losses
    assert (scores.domain, scores.split, scores.windows) == ("tiles", "test", 5)  # 3 and 5 steps in windows of 2
    for kind, found, count in (("action", scores.action, 3 * 8), ("language", scores.language, None)):
        assert found is not None
        assert found.accuracy == pytest.approx(losses[f"{kind}_accuracy"], abs=1e-6)
        assert found.perplexity == pytest.approx(math.exp(losses[kind]), rel=1e-4)
        assert count is None or found.count == count
    assert scores.classes is None


def test_the_number_of_rows_can_be_limited(trained: TrainedRun) -> None:
    domain, params = trained.domain(), trained.params()
    rows = trained.rows(domain, trained.open_store(domain), "train")
    assert len(rows.plan(0)) > 3
    whole = next(iter(forwards(trained.config.model, params, rows)))
    ((batch, output),) = forwards(trained.config.model, params, rows, 3)
    for found, expected in ((batch.target_BT, whole[0].target_BT), (output.nll_BT, whole[1].nll_BT)):
        np.testing.assert_array_equal(found, expected[:3])


def test_bleu_compares_the_best_ids_of_each_window(trained: TrainedRun, scores: DomainScores) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    domain, params = trained.domain(), trained.params()
    rows = trained.rows(domain, trained.open_store(domain), "test")
    patches, predicted, recorded = trained.config.model.vision.patches, [], []
    laid = [lay_out((rows.windows[0].read(number, 0),), rows.size, 1 + patches, patches)
            for number in range(rows.counts[0])]
    batch = stack(laid)
    output: Any = jax.jit(Agent(trained.config.model).apply)({"params": params}, batch)
    for row, best_T in enumerate(np.argmax(np.asarray(output.logits_BTK), axis=-1)):
        positions = np.flatnonzero(batch.action_weight_BT[row])
        predicted.append(" ".join(map(str, best_T[positions])))
        recorded.append(" ".join(map(str, batch.target_BT[row, positions])))
    expected = sacrebleu.corpus_bleu(predicted, [recorded], tokenize="none", force=True).score
    assert scores.bleu4 == pytest.approx(expected)
    assert 0 < expected < 100


@pytest.mark.parametrize("always", [0, 2])
def test_class_accuracy_and_that_of_the_most_frequent_training_class(tmp_path: Path, always: int) -> None:
    domain = clip_domain("label")
    config = tiny_config(domain.vocabulary, ["clips"], classes=3, image_size=16)
    params = random_params(config.model)
    params["classifier"]["bias"] = 1e6 * jax.nn.one_hot(always, 3)
    store = clip_store(tmp_path / "clips")  # labels 2, 0, 2 in training, 2 in the test split
    trained = TrainedRun(tmp_path, 0, config, {"clips": domain})
    found = evaluate_offline(trained, params, domain, data=str(store.directory))
    f1 = float(always == 2)
    assert found.classes == ClassScores(2, f1, 1.0, f1, 1.0, tuple(
        tuple(2 * (label == 2 and predicted == always) for predicted in range(3)) for label in range(3)))
    assert (found.recordings, found.intervals) == (1, {})  # both clips are of one recording
    assert found.action is None
    assert found.bleu4 is None


def test_intervals_are_over_the_recordings_of_the_split(scores: DomainScores) -> None:
    assert scores.recordings == 2
    assert set(scores.intervals) == {"action_accuracy", "action_perplexity", "exact", "bleu4", "language_accuracy",
                                     "language_perplexity"}
    assert scores.action is not None
    low, high = scores.intervals["action_perplexity"]
    assert low < scores.action.perplexity < high  # of two recordings: each of them alone


def test_the_number_of_recordings_can_be_limited(trained: TrainedRun) -> None:
    domain, params = trained.domain(), trained.params()
    parts = [evaluate_offline(trained, params, domain, split="train", recordings_limit=count) for count in (0, 2, 99)]
    assert [part.recordings for part in parts] == [9, 2, 9]
    assert parts[0] == parts[2]
    assert parts[1].windows < parts[0].windows


def test_a_split_that_shares_a_recording_with_the_training_split_is_refused(trained: TrainedRun,
                                                                            tmp_path: Path) -> None:
    domain, params = trained.domain(), trained.params()
    own = trained.open_store(domain)
    both = write_store(tmp_path / "both", "tiles", BABYAI_FEATURES, {
        "train": babyai_episodes((4, 4), seed=7),
        "test": [*babyai_episodes((3,), seed=8), *babyai_episodes((4,), seed=7)],
        "more": babyai_episodes((3,), seed=9)}, own.metadata)
    with pytest.raises(ValueError, match=r"both, split 'test': 1 of its 2 recordings .* split 'train' of .*both, the "
                                         r"first as record 1 of 'test'"):
        evaluate_offline(trained, params, domain, data=str(both.directory))
    assert evaluate_offline(trained, params, domain, data=str(both.directory), split="more").recordings == 1
    # Data of their own whose recordings the run was trained on.
    copied_train = write_store(tmp_path / "again", "tiles", BABYAI_FEATURES, {"test": babyai_episodes((6, 1))},
                               own.metadata)
    with pytest.raises(ValueError, match=r"again, split 'test': 2 of its 2 recordings .* 'train' of"):
        evaluate_offline(trained, params, domain, data=str(copied_train.directory))


def test_games_have_precision_and_recall_by_button_and_the_cameras_error(tmp_path: Path) -> None:
    store = game_store(tmp_path / "store")
    trained = TrainedRun.load(make_checkpoint(tmp_path / "game", ("minecraft",)).path)
    found = evaluate_offline(trained, trained.params(), trained.domain(), data=str(store.directory)).choices
    assert found is not None
    buttons = sum(episode.values("steps/buttons", 0, episode.steps).sum() for episode in store.split("test"))
    assert sum(one.recorded for one in found.buttons) == buttons
    assert [(one.name, one.unit) for one in found.errors] == [("pitch", "deg"), ("yaw", "deg")]
    assert all(one.recall is None or 0 <= one.recall <= 1 for one in found.buttons)


def test_the_table_shows_existing_metrics_and_dashes() -> None:
    one = DomainScores("tiles", "test", 1234, TokenScores(10, 0.5, 2.0), 12.34, None, None)
    two = DomainScores("ward", "val", 5, None, None, None, ClassScores(5, 0.8, 0.6, 0.75, 0.375, ((1, 0), (1, 3))))
    errors = (BinError("shoulder_pan", "deg", 3.14159, 4), BinError("action[1]", "", 0.5, 4))
    buttons = (ButtonScore("jump", 0.5, None, 2, 0),)
    one = dataclasses.replace(one, choices=ActionAccuracy(8, 0.5, 4, 0.25, errors, buttons), recordings=3,
                              intervals={"action_accuracy": (0.4, 0.6), "bleu4": (1.0, 30.0)})
    lines = format_scores([one, two]).splitlines()
    assert lines[2].split() == ["tiles", "test", "1,234", "50.00%", "25.00%", "2.000", "12.3", "-", "-", "-", "-"]
    assert lines[3].split() == ["ward", "val", "5", "-", "-", "-", "-", "-", "-", "80.00%", "60.00%"]
    assert lines[4] == "tiles: mean absolute error shoulder_pan 3.14 deg, action[1] 0.5"
    summary = "ward: accuracy 80.00% (majority class 60.00%), macro-F1 0.750 (majority class 0.375), 5 clips"
    assert summary in lines
    words = [line.split() for line in lines[5:] if line not in ("", summary) and set(line) != {"-"}]
    assert words == [
        ["domain", "metric", "95%", "interval", "recordings"],
        ["tiles", "action", "accuracy", "40.00%", "to", "60.00%", "3"],
        ["tiles", "bleu4", "1.000", "to", "30.000", "3"],
        ["tiles:", "button", "precision", "recall", "predicted", "recorded"], ["jump", "50.00%", "-", "2", "0"],
        ["class", "/", "predicted", "0", "1"], ["0", "1", "0"], ["1", "1", "3"]]


def test_data_sets_are_named_by_domain(trained: TrainedRun, tmp_path: Path) -> None:
    assert data_paths(["/x"], trained.domains) == data_paths(["tiles=/x"], trained.domains) == {"tiles": "/x"}
    with pytest.raises(ValueError, match=r"--data table=/x: expected NAME=DIR with one of the domains tiles"):
        data_paths(["table=/x"], trained.domains)
    with pytest.raises(ValueError, match="domain='table': .* was trained on tiles"):
        trained.domain("table")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        TrainedRun.load(tmp_path)
    with pytest.raises(ValueError, match="no split 'dev'"):
        evaluate_offline(trained, trained.params(), trained.domain(), split="dev")


def test_the_results_name_the_evaluated_step_and_the_damaged_ones(straight: Trained, tmp_path: Path):
    workdir = copied(straight.workdir, tmp_path / "run")
    flip_a_bit(workdir / "checkpoints" / "20")
    assert main(["offline", "--checkpoint", str(workdir), "--rows", "1", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["step"], found["damaged_steps_passed_over"]) == (10, [20])
