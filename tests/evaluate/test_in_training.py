"""Closed-loop evaluation during training: logged, and without effect on the training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import Trained, differing, open_run, small_config, store_directory, straight_run, trained

from agent_jax.config import ClosedLoopConfig, Config, DomainConfig, from_config_dict, presets, to_config_dict
from agent_jax.evaluate.__main__ import main as evaluate
from agent_jax.evaluate.closed_loop import closed_loop
from agent_jax.evaluate.in_training import acting_domain
from agent_jax.policy import Policy
from agent_jax.train import report
from agent_jax.train.loop import finish

pytest.importorskip("minigrid")

TASKS = {"GoToObj": 2}
LONGEST = 28  # room for GoToObj's instructions; rows are as long as their texts, so it changes nothing else


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def acted(base: Path) -> Trained:
    changes = {"closed_loop.environment": "babyai", "closed_loop.episodes": TASKS, "closed_loop.every": 10,
               "closed_loop.processes": 1, "data.domains.tiles.max_text": LONGEST}
    return trained(small_config(store_directory(base), **changes), base / "in_training")


def test_a_run_is_bitwise_equal_with_and_without_evaluation(base: Path, acted: Trained) -> None:
    assert list(differing(acted.state, straight_run(base).state)) == []


def test_the_success_of_a_steps_parameters_is_in_the_log(base: Path, acted: Trained) -> None:
    lines = [json.loads(line) for line in (acted.workdir / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["split"] == "closed_loop"]
    assert line["step"] == 10
    policy = Policy.load(acted.workdir, step=10)
    config = ClosedLoopConfig(environment="babyai", episodes=TASKS)
    expected = closed_loop(config, {"greedy": policy}, domain=policy.domain, baselines=False, log=lambda line: None)
    assert line["success"] == expected


def test_the_report_is_written_even_if_the_final_evaluation_fails(
        acted: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise ValueError("the instruction has 99 tokens")

    monkeypatch.setattr(report, "act_in_simulator", fail)
    assert acted.validation is not None
    assert "failed: the instruction has 99 tokens" in finish(acted.run, acted.validation, tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["closed_loop"], written["losses"]["total"]) == ({}, acted.validation.loss)
    assert "evaluation" not in written
    monkeypatch.setattr(report, "score_held_out", fail)
    monkeypatch.setattr(report, "act_in_simulator", lambda *arguments: {})
    assert "scoring the held-out data failed: the instruction has 99 tokens" in finish(
        acted.run, acted.validation, tmp_path / "again.json")


def test_an_instruction_that_is_too_long_is_an_error_before_the_first_step(base: Path) -> None:
    changes = {"closed_loop.environment": "babyai", "closed_loop.episodes": TASKS, "closed_loop.every": 10}
    with pytest.raises(ValueError, match=r"the instruction 'go to .*' has \d+ tokens with </s>, expected at most"):
        open_run(small_config(store_directory(base), **changes), base / "too_long")


def test_several_simulators_act_each_by_its_domain(base: Path, tmp_path: Path) -> None:
    """In training, at its end, and from the checkpoint by `evaluate closed-loop`."""
    draft = to_config_dict(small_config(store_directory(base), **{"data.domains.tiles.max_text": LONGEST})).unlock()
    draft.data.directory = str(tmp_path / "data")
    draft.data.domains.gathered = presets.domain(window=2, stride=2, max_text=LONGEST)
    for name in ("tiles", "gathered"):
        demonstrations = draft.data.domains[name].demonstrations
        demonstrations.environment, demonstrations.episodes = "babyai", {"GoToObj": 3}
        demonstrations.validation_episodes, demonstrations.image_size = 2, 28
        demonstrations.processes = 1
    draft.closed_loop.domains = {"tiles": {"GoToObj": 2}, "gathered": {"GoToObj": 1}}
    draft.closed_loop.every, draft.closed_loop.processes, draft.closed_loop.video = 2, 1, False
    draft.train.steps, draft.checkpoint.every = 4, 4
    made = trained(from_config_dict(draft), tmp_path / "run")
    lines = [json.loads(line) for line in (made.workdir / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["split"] == "closed_loop"]
    assert {name: list(tasks) for name, tasks in line["success"].items()} == {"tiles": ["GoToObj"],
                                                                              "gathered": ["GoToObj"]}
    assert made.validation is not None
    assert finish(made.run, made.validation, tmp_path / "report.json") == ""
    report = json.loads((tmp_path / "report.json").read_text())["closed_loop"]
    assert report["tiles"]["GoToObj"]["greedy"]["episodes"] == 2
    assert report["gathered"]["GoToObj"]["sampled"]["episodes"] == 1
    assert report["gathered"]["GoToObj"]["bot"]["success"] == 1.0
    arguments = ["closed-loop", "--checkpoint", str(made.workdir), "--env", "babyai", "--domain", "gathered",
                 "--episodes", "1", "--processes", "0", "--json", str(tmp_path / "acted.json")]
    assert evaluate(arguments) == 0
    acted = json.loads((tmp_path / "acted.json").read_text())
    assert (acted["domain"], list(acted["tasks"])) == ("gathered", ["GoToObj"])
    outcome = report["gathered"]["GoToObj"]["greedy"]["per_episode"][0]
    assert {key: acted["tasks"]["GoToObj"]["greedy"]["per_episode"][0][key] for key in outcome} == outcome


def test_the_domain_of_the_environment_acts() -> None:
    def config(**domains: str) -> Config:
        made = Config(closed_loop=ClosedLoopConfig(environment="babyai"))
        entries = {name: DomainConfig(path=path) for name, path in domains.items()}
        demonstrations = dataclasses.replace(made.data.demonstrations, environment="babyai")
        data = dataclasses.replace(made.data, domains=entries, demonstrations=demonstrations)
        return dataclasses.replace(made, data=data)

    assert acting_domain(config(table="/x")) == ""
    assert acting_domain(config(table="/x", babyai="/y")) == "babyai"
    assert acting_domain(config(table="/x", tiles="")) == "tiles"
    with pytest.raises(ValueError, match="'babyai': found the domains other, table, expected one named 'babyai'"):
        acting_domain(config(table="/x", other="/y"))
