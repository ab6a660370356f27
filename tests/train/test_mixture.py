"""One run on tiles, a robot, a game, clips with answers and clips with classes: each has the losses that it should."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from data_stores import CAMERAS, babyai_store, clip_store, game_store, language_table_store
from small_runs import open_run, small_config

from agent_jax.actions import LANGUAGE_TABLE, LANGUAGE_TABLE_STATE
from agent_jax.config import Config, DataConfig, DomainConfig, EvaluationConfig, VocabularyConfig
from agent_jax.data.pipeline.loader import Loader
from agent_jax.data.pipeline.run_data import RunData, open_data
from agent_jax.models.agent import abstract_params
from agent_jax.policy import Policy
from agent_jax.runtime.sharding import make_mesh, shard_batch
from agent_jax.train.loop import finish, train
from agent_jax.train.metrics import Record, mean_losses
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.restart import start
from agent_jax.train.run import Run
from agent_jax.train.state import init_state
from agent_jax.train.step import make_train_step

STEPS = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    directory = tmp_path_factory.mktemp("mixture")
    table = language_table_store(directory / "table", (7, 5))
    clips = str(clip_store(directory / "clips").directory)
    asked = {"path": clips, "window": 3, "stride": 3, "max_text": 8, "cameras": CAMERAS[:1], "video": True}
    domains = {
        "answers": DomainConfig(**asked, layout="answer", max_answer=10),
        "classes": DomainConfig(**asked, layout="label"),
        "game": DomainConfig(path=str(game_store(directory / "game").directory), window=9, stride=9, max_text=8),
        "table": DomainConfig(path=str(table.directory), instruction="steps/observation/instruction", max_text=40,
                              action_spec=LANGUAGE_TABLE.to_dict(), state_spec=LANGUAGE_TABLE_STATE.to_dict(),
                              validation_split="train", sampling="random"),
        "tiles": DomainConfig(path=str(babyai_store(directory / "tiles").directory), max_text=16),
    }
    made = small_config(directory, **{"model.visual_tokens": "visible", "model.language.positions": 512,
                                      "train.steps": STEPS, "train.batch_size": 16, "model.classes": 3,
                                      "checkpoint.every": 0})
    return dataclasses.replace(made, vocabulary=VocabularyConfig(blocks=("iafm", "babyai")),
                               data=DataConfig(domains=domains, frames_per_row=9))


KINDS = {"answers": {"language"}, "classes": {"label"}, "game": {"language", "action"},
         "table": {"language", "action"}, "tiles": {"language", "action"}}


@pytest.fixture(scope="module")
def data(config: Config) -> RunData:
    return open_data(config)


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory) -> Run:
    made = open_run(config, tmp_path_factory.mktemp("run"))
    train(made, *made.open_streams())
    return made


def losses_there_are(losses: dict) -> set[str]:
    return {kind for kind in ("language", "action", "mae", "label") if math.isfinite(losses[kind] or math.nan)}


def test_a_step_on_a_mixture_trains_all_domains_each_with_the_losses_of_its_layout(config: Config, data: RunData):
    config = config.with_vocabulary_size(data.vocabulary.size)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
    state, step = init_state(config, mesh, optimizer), make_train_step(config, mesh, optimizer)
    found: list[tuple[float, dict]] = []
    with contextlib.closing(Loader(data.train, config.train.batch_size)) as loader:
        for batch, _ in itertools.islice(loader, 8):
            state, metrics = step(state, shard_batch(batch, mesh))
            sums, weights = jax.device_get((metrics.sums, metrics.weights))
            found.append((float(metrics.loss), mean_losses(sums, weights, [*KINDS], classes=True)[1]))
    for name, kinds in KINDS.items():  # a batch may lack a domain
        assert set().union(*(losses_there_are(by_domain[name]) for _, by_domain in found)) == kinds | {"mae"}
    assert found[-1][0] < found[0][0]


@pytest.mark.slow
def test_every_domain_of_a_mixture_has_the_losses_of_its_layout_in_the_log_of_a_run(run: Run):
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    (validation,) = [line for line in lines if line["split"] == "validation"]
    assert {name: losses_there_are(losses) for name, losses in validation["domains"].items()} == {
        name: kinds | {"mae"} for name, kinds in KINDS.items()}
    assert len(lines) == STEPS + 1
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert 0 <= validation["losses"]["label_accuracy"] <= 1


def test_the_start_says_what_the_mixture_is_made_of(data: RunData):
    summary = data.summary()
    for words in ("  answers  answer ", "  table    actions  language_table  4 random ", "most frequent, 2, has 83.3%",
                  "used of a row: frames "):
        assert words in summary
    assert f"{data.epochs:,.2f} epochs in the run" in summary
    assert data.epochs == STEPS * 16 / len(data.train.plan(0))


def test_validation_looks_at_every_step_once_though_training_draws_its_windows(data: RunData):
    table = data.validation.windows[3]
    assert table.domain.sampling == "consecutive"
    assert data.train.windows[3].domain.sampling == "random"
    assert table.steps.sum() == 7 + 5


@pytest.mark.slow
def test_a_saved_mixture_acts_says_and_classifies(run: Run):
    image = np.zeros((16, 16, 3), np.uint8)
    policy = Policy.load(run.workdir, domain="game")
    assert policy.domain.window == 9
    assert set(policy.act([image], ["go"], [0])[0]) == set(policy.domain.spec.spec.fields)
    assert len(policy.say([[image] * 3], ["who?"])[0].ids) <= 10
    assert policy.classify([[image] * 3])[0].probabilities.shape == (3,)
    with pytest.raises(ValueError, match=r"name one of them"):
        Policy.load(run.workdir)


@pytest.mark.slow
def test_answers_and_classes_are_scored_at_the_end_of_a_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(run, "config", dataclasses.replace(run.config, evaluation=EvaluationConfig(rows=2)))
    validation = Record(STEPS, "validation", 0.0, 1.0, {}, {})
    assert finish(run, validation, tmp_path / "report.json") == ""
    found = json.loads((tmp_path / "report.json").read_text())["evaluation"]
    assert set(found) == {"answers", "classes"}
    assert found["answers"]["generated"]["texts"] == min(2, found["answers"]["windows"])
    assert {"exact"} <= found["answers"]["generated"]["baseline"].keys()
    assert 0 <= found["classes"]["classes"]["majority_accuracy"] <= 1
    assert "answers, generated: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_without_classes_is_tuned_with_a_fresh_class_head(config: Config, run: Run, tmp_path: Path):
    only = {name: entry for name, entry in config.data.domains.items() if name != "classes"}
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, classes=0),
                                data=dataclasses.replace(config.data, domains=only))
    first = open_run(plain, tmp_path / "plain")
    with first.checkpoints:
        first.save(first.first.state, None, None)
    tuned = dataclasses.replace(run.config, init=dataclasses.replace(config.init, checkpoint=str(tmp_path / "plain")))
    made = start(tuned, run.mesh, run.optimizer, run.data.vocabulary, run.data.domains,
                 type(run.checkpoints)(tmp_path / "tuned" / "checkpoints", keep_latest=1, keep_best=0))
    assert "classes: 0 there, 3 here) (init.checkpoint)\n" in made.source
    assert "the checkpoint has no class head" in made.source
    assert made.state.params["classifier"]["kernel"].shape == (16, 3)
    assert made.state.params["classifier"]["kernel"].any()
    assert (made.state.params["connector"]["kernel"] == first.first.state.params["connector"]["kernel"]).all()

    more = dataclasses.replace(tuned, init=dataclasses.replace(config.init, checkpoint=str(run.workdir)),
                               model=dataclasses.replace(run.config.model, classes=4))
    optimizer = make_optimizer(more.optimizer, more.train.steps, abstract_params(more.model))
    made = start(more, run.mesh, optimizer, run.data.vocabulary, run.data.domains,
                 type(run.checkpoints)(tmp_path / "more" / "checkpoints", keep_latest=1, keep_best=0))
    assert "another number of classes" in made.source
    assert made.state.params["classifier"]["kernel"].shape == (16, 4)
    fewer = dataclasses.replace(more, model=dataclasses.replace(run.config.model, classes=0))
    optimizer = make_optimizer(fewer.optimizer, fewer.train.steps, abstract_params(fewer.model))
    made = start(fewer, run.mesh, optimizer, run.data.vocabulary, run.data.domains,
                 type(run.checkpoints)(tmp_path / "fewer" / "checkpoints", keep_latest=1, keep_best=0))
    assert "no class head here" in made.source


def test_a_label_that_the_model_has_no_class_for_is_refused_at_the_start(config: Config):
    fewer = dataclasses.replace(config, model=dataclasses.replace(config.model, classes=2))
    with pytest.raises(ValueError, match=r"domains.classes.label=label: found class 2 in record 0 of split 'train'"):
        open_data(fewer)
