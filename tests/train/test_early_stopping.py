"""Early stopping: counting, ending, resuming, and the best step of a run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from small_runs import Trained, small_config, store_directory, trained

from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.checkpoint import locate
from agent_jax.checkpoints.restore import load_to_act
from agent_jax.checkpoints.retention import rank
from agent_jax.config import CheckpointConfig, ClosedLoopConfig, Config, TrainConfig
from agent_jax.train import report
from agent_jax.train.early_stopping import EarlyStopping, MetricError, checkpoint_metrics
from agent_jax.train.loop import finish
from agent_jax.train.metrics import LOSSES, Record
from agent_jax.train.run import Run

LOSS_AT = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: 3.2}


def validation(step: int, loss: float, **losses: float) -> Record:
    values = {**dict.fromkeys(LOSSES, math.nan), **losses}
    return Record(step, "validation", 0.0, loss, values, {"tiles": values})


def config(metric: str = "loss", patience: int = 2) -> Config:
    return Config(train=TrainConfig(patience=patience), checkpoint=CheckpointConfig(best_metric=metric))


@pytest.mark.parametrize(("metric", "values", "best"), [
    ("loss", (3.0, 2.0, 2.5, 2.0, 1.0), 2), ("action_accuracy", (0.1, 0.3, 0.2, 0.3, 0.9), 2),
    ("tiles/action", (3.0, 2.0, 2.5, 2.0, 1.0), 2), ("loss", (3.0, 4.0, 2.0, 3.0, 3.0), 3),
])
def test_a_run_ends_after_validations_without_a_better_value(metric: str, values: tuple[float, ...], best: int):
    early, ended_at = EarlyStopping(config(metric)), None
    for step, value in enumerate(values, start=1):
        name = metric.rpartition("/")[2]
        early.after(validation(step, value if name == "loss" else 0.0, **({} if name == "loss" else {name: value})))
        early = EarlyStopping(config(metric), json.loads(json.dumps(early.to_meta())))  # as if the run were resumed
        if early.ended:
            ended_at = step
            break
    assert (ended_at, early.step) == (best + 2, best)


def test_without_patience_a_run_goes_on_and_its_checkpoints_hold_nothing_new():
    early = EarlyStopping(config(patience=0))
    assert not any(early.after(validation(step, 1.0)) for step in range(5))
    assert (early.ended, early.to_meta()) == (False, {})
    assert checkpoint_metrics(validation(1, 2.0), "loss") == {"validation/loss": 2.0}


def test_another_metric_starts_counting_afresh():
    early = EarlyStopping(config())
    early.after(validation(1, 3.0))
    assert EarlyStopping(config("action"), early.to_meta()).step is None


def test_a_metric_without_a_value_is_refused_by_name():
    with pytest.raises(MetricError, match=r"best_metric='action'.*after step 3.*expected one of loss, mae, tiles/mae"):
        EarlyStopping(config("action")).after(validation(3, 1.0, mae=0.5))
    assert checkpoint_metrics(validation(3, 1.0), "action") == {"validation/loss": 1.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """A run in a workdir, whose validations find the losses of `LOSS_AT`."""
    store = store_directory(tmp_path_factory.getbasetemp())

    def validate(self: Run, state: Any, stopped: Callable[[], bool]) -> Record:
        del self, stopped
        return validation(int(state.step), LOSS_AT[int(state.step)])

    def run(workdir: Path, patience: int) -> Trained:
        changes = {"train.patience": patience, "train.validate_every": 2, "checkpoint.every": 0,
                   "checkpoint.keep_latest": 1}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "validate", validate)
            return trained(small_config(store, **changes), workdir)

    return run


@pytest.fixture(scope="module")
def ended(run: Callable[..., Trained], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run(tmp_path_factory.mktemp("early") / "run", 2)


def test_the_best_step_of_a_run_that_ended_early_is_kept_and_named(ended: Trained, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch):
    assert (int(ended.state.step), ended.run.early_stopping.step) == (8, 4)
    steps = checkpoint.steps(ended.workdir / "checkpoints")
    assert steps == [4, 8]
    for path in (ended.workdir / "best", ended.workdir / "checkpoints" / "best"):
        assert locate(path) == (ended.workdir / "checkpoints", 4)
        assert load_to_act(path).taken.step == 4
    acted: list[int] = []
    monkeypatch.setattr(report, "act_in_simulator", lambda *arguments: acted.append(arguments[-1]) or {})
    assert ended.validation is not None
    monkeypatch.setattr(ended.run, "config", dataclasses.replace(
        ended.run.config, closed_loop=ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 1})))
    assert finish(ended.run, ended.validation, tmp_path / "report.json") == ""
    written = json.loads((tmp_path / "report.json").read_text())
    assert (acted, written["steps"]) == ([4], 8)
    assert written["best"] == {"metric": "loss", "step": 4, "value": 3.0, "since": 2}


def test_a_run_that_ended_early_ends_again_and_goes_on_with_more_patience(ended: Trained, run: Callable[..., Trained]):
    again = run(ended.workdir, 2)
    assert (int(again.state.step), checkpoint.steps(ended.workdir / "checkpoints")) == (8, [4, 8])
    longer = run(ended.workdir, 3)
    assert (int(longer.state.step), longer.run.early_stopping.step) == (10, 4)
    assert checkpoint.steps(ended.workdir / "checkpoints") == [4, 10]


def test_the_best_step_of_a_run_without_validations_is_refused(tmp_path: Path):
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep_latest=1, keep_best=0) as checkpoints:
        checkpoints.save(3, {"params": {"a": jnp.ones(2)}}, {"config": {}})
    with pytest.raises(FileNotFoundError, match=r"checkpoints/best: no step there .* finite validation/loss"):
        locate(tmp_path / "best")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        locate(tmp_path / "nowhere" / "best")


def test_of_an_accuracy_the_highest_is_the_best(tmp_path: Path):
    metric = "validation/action_accuracy"
    with checkpoint.Checkpoints(tmp_path, keep_latest=1, keep_best=1, best_metric=metric) as checkpoints:
        for step, value in enumerate((0.2, 0.9, 0.4, 0.1), start=1):
            checkpoints.save(step, {"a": jnp.ones(2)}, {}, {metric: value})
            checkpoints.wait()
    assert checkpoint.steps(tmp_path) == [2, 4]
    assert rank([checkpoint.read_meta(tmp_path, step) for step in (2, 4)], metric) == [2, 4]
