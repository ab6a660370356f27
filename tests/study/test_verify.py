"""`python -m agent_jax.study verify`: a true run, altered records and checkpoints, and workdirs that it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_runs import Trained, copied, listing, straight_run
from tiny_checkpoints import make_checkpoint

from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.checkpoint import Checkpoints
from agent_jax.config import ClosedLoopConfig
from agent_jax.evaluate.in_training import acting_domains, by_domain
from agent_jax.json_files import write_json
from agent_jax.study.__main__ import main
from agent_jax.study.agreement import compare
from agent_jax.study.verify_steps import read_lines
from agent_jax.train import report
from agent_jax.train.state import abstract_state


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return straight_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def workdir(straight: Trained, tmp_path: Path) -> Path:
    """A copy of the run, with a report that names this machine."""
    path = copied(straight.workdir, tmp_path / "run")
    write_json(path / "report.json", {"machine": report.machine(), "steps": 20,
                                      "config": dataclasses.asdict(straight.run.config)})
    return path


def alter_line(workdir: Path, step: int, change: Callable[[dict[str, Any]], None]) -> None:
    path, lines = workdir / "metrics.jsonl", []
    for text in path.read_text().splitlines():
        record = json.loads(text)
        if record["step"] == step and record["split"] == "train":
            change(record)
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")


def nudge_loss(record: dict[str, Any]) -> None:
    record["loss"] = float(np.nextafter(record["loss"], np.inf))


def verified(workdir: Path, out: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    status = main(["verify", str(workdir), "--json", str(out), *flags])
    return status, json.loads(out.read_text())


def test_losses_of_a_run_are_equal_to_the_bit_until_one_bit_is_altered(workdir: Path, tmp_path: Path) -> None:
    before = listing(workdir)
    status, result = verified(workdir, tmp_path / "out.json", "--steps", "13")
    assert (status, result["verdict"], result["same_machine"]) == (0, "equal", True)
    assert len(result["steps"]) == 13  # log_every is 1: from both checkpoints, 0 and 10
    assert {one["checkpoint"] for one in result["steps"]} == {0, 10}
    assert [one["checkpoint"] for one in result["validations"]] == [20]
    assert listing(workdir) == before
    alter_line(workdir, 11, nudge_loss)
    status, result = verified(workdir, tmp_path / "out.json", "--steps", "13", "--validations", "0")
    assert (status, result["verdict"]) == (1, "different")
    assert [(one["steps"], list(one["differences"])) for one in result["steps"] if one["verdict"] == "different"] == [
        ([11, 11], ["loss"])]


def test_another_machine_has_a_tolerance_and_an_altered_checkpoint_is_beyond_it(workdir: Path, straight: Trained,
                                                                               tmp_path: Path) -> None:
    content = json.loads((workdir / "report.json").read_text())
    content["machine"]["jax"] = "0.1"
    write_json(workdir / "report.json", content)
    alter_line(workdir, 11, nudge_loss)
    flags = "--steps", "20", "--validations", "0"
    status, result = verified(workdir, tmp_path / "out.json", *flags)
    assert (status, result["verdict"]) == (0, "within tolerance")
    assert result["machine_difference"]["jax"] == ["0.1", report.machine()["jax"]]
    run = straight.run
    abstract = abstract_state(run.config, run.mesh, run.optimizer)
    directory = workdir / "checkpoints"
    state, meta = checkpoint.restore_parameters(directory, abstract, step=10, subtree="")
    shutil.rmtree(directory)
    changed = dataclasses.replace(state, params=jax.tree.map(lambda leaf: leaf * 1.01, state.params))
    own = {key: meta[key] for key in ("config", "vocabulary", "domains", "data_state")}
    with Checkpoints(directory, keep_latest=1, keep_best=0) as checkpoints:
        checkpoints.save(10, changed, own)
    status, result = verified(workdir, tmp_path / "out.json", *flags)
    assert (status, result["verdict"]) == (1, "different")
    assert {one["checkpoint"] for one in result["steps"] if one["verdict"] == "different"} == {10}


def test_outcomes_are_repeated_from_their_seeds(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "run" / "checkpoints", ["babyai"], domain_fields={"max_text": 40})
    config = dataclasses.replace(made.config, closed_loop=ClosedLoopConfig(
        "babyai", {"GoToObj": 3}, video=False))
    workdir = tmp_path / "run"
    (workdir / "metrics.jsonl").write_text("")
    (acting,) = acting_domains(config)
    found = report.act_in_simulator(config, acting, workdir, tmp_path, 7)
    content = {"closed_loop": by_domain({"": found}), "steps": 7, "config": dataclasses.asdict(config),
               "machine": report.machine()}
    write_json(workdir / "report.json", content)
    flags = "--steps", "0", "--validations", "0", "--episodes", "4"
    status, result = verified(workdir, tmp_path / "out.json", *flags)
    assert (status, result["verdict"], len(result["episodes"])) == (0, "equal", 4)
    assert {one["policy"] for one in result["episodes"]} == {"greedy", "sampled"}
    for one in content["closed_loop"]["GoToObj"]["greedy"]["per_episode"]:
        one["success"] = not one["success"]
    write_json(workdir / "report.json", content)
    status, result = verified(workdir, tmp_path / "out.json", *flags)
    assert status == 1
    assert {one["policy"] for one in result["episodes"] if one["verdict"] == "different"} == {"greedy"}
    assert all(one["batch"] == "whole task" for one in result["episodes"] if one["verdict"] == "different")


def test_what_cannot_be_verified_is_refused_by_name(workdir: Path, straight: Trained, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["verify", *arguments]) == 2
        return capsys.readouterr().err

    assert "nothing: no such directory" in refused(str(tmp_path / "nothing"))
    assert "--steps -1" in refused(str(workdir), "--steps", "-1")
    assert "is in the workdir" in refused(str(workdir), "--json", str(workdir / "out.json"))
    store = Path(straight.config.data.domains["tiles"].path)
    moved = store.rename(store.with_name("moved"))
    try:
        assert f"{store}" in refused(str(workdir))
    finally:
        moved.rename(store)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write("nonsense\n")
    assert "metrics.jsonl:" in refused(str(workdir))
    (workdir / "metrics.jsonl").unlink()
    assert "metrics.jsonl: no such file" in refused(str(workdir))
    shutil.rmtree(workdir / "checkpoints")
    assert "no checkpoint in" in refused(str(workdir))


def test_a_line_after_a_resumed_run_is_the_step_alone_and_accuracies_have_an_absolute_tolerance(tmp_path: Path) -> None:
    records = [{"step": step, "split": "train"} for step in (1, 40, 51, 60)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records) + '{"step": 7')
    assert [(line.since, line.step) for line in read_lines(tmp_path)["train"]] == [(0, 1), (1, 40), (40, 51), (51, 60)]
    assert compare({"loss": 1.0}, {"loss": 1.0005}, 1e-3)[0] == "within tolerance"
    assert compare({"loss": 1.0}, {"loss": 1.0005}, 0.0)[0] == "different"
    assert compare({"a": {"accuracy": 0.0}}, {"a": {"accuracy": 0.0005}}, 1e-3)[0] == "within tolerance"
    assert compare({"learning_rate": 1e-4}, {"learning_rate": 1.1e-4}, 1e-3) == (
        "different", {"learning_rate": [1e-4, 1.1e-4]})
