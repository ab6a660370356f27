"""report.json: every figure of the run under the keys that other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from small_runs import Smoke, small_config, smoke_run, store_directory, trained

from agent_jax.data.pipeline.run_data import open_data
from agent_jax.models.agent import init_params
from agent_jax.train import report
from agent_jax.train.phases import Phases
from agent_jax.train.report import peak_rss_bytes, write_page, write_report
from agent_jax.view.reconstruction import PICTURED_IMAGES, write_picture


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    return smoke_run(tmp_path_factory.getbasetemp())


def test_the_report_of_a_run_has_the_success_of_every_policy_losses_times_and_memory(smoke: Smoke):
    report = json.loads((smoke.workdir / "report.json").read_text())
    assert set(report["closed_loop"]) == {"GoToObj"}
    level = report["closed_loop"]["GoToObj"]
    assert {"greedy", "sampled", "random", "bot"} <= set(level)
    for figures in level.values():
        low, high = figures["ci95"]
        assert 0 <= low <= figures["success"] <= high <= 1
        assert figures["episodes"] == 4
    assert level["bot"]["success"] == 1.0
    assert {"total", "language", "action", "mae"} <= set(report["losses"])
    assert list(report["seconds"]) == ["import", "demonstrations", "start", "compile", "data wait", "step", "saving",
                                       "evaluation", "other"]
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    assert report["seconds"]["import"] < report["seconds_to_first_step"] < sum(report["seconds"].values())
    assert 0 <= report["data_wait_share"] <= 1
    assert 2**27 < report["peak_rss_bytes"] < 2**34
    assert report["machine"]["devices"] == ["cpu"]
    assert report["start"].startswith("resumed from step")


def test_json_is_the_same_report_elsewhere(smoke: Smoke):
    assert smoke.json.read_bytes() == (smoke.workdir / "report.json").read_bytes()


def test_a_report_replaces_the_one_before_and_leaves_nothing_half_written(tmp_path: Path):
    phases = Phases()
    phases.add("a", 1.0)
    phases.add("a", 0.5)
    for steps in (1, 2):
        write_report([tmp_path / "deep" / "report.json"], {"steps": steps}, phases)
    report = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert (report["steps"], report["seconds"]["a"]) == (2, 1.5)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.json"]


def test_a_program_is_compiled_for_the_first_picture_of_a_run_and_no_other(tmp_path: Path):
    config = small_config(store_directory(tmp_path))
    data = open_data(config)
    config = config.with_vocabulary_size(data.vocabulary.size)
    params = init_params(config.model, jax.random.key(0))
    rows = data.first_validation_rows(config, PICTURED_IMAGES)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(listener := lambda event, *_, **__: compiled.append(event))
    try:
        write_picture(tmp_path / "pictures" / "1.png", config, params, rows)
        assert any("compile" in event for event in compiled)
        compiled.clear()
        write_picture(tmp_path / "pictures" / "2.png", config, params, rows)
        assert not any("compile" in event or "trac" in event for event in compiled)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    one, two = ((tmp_path / "pictures" / name).read_bytes() for name in ("1.png", "2.png"))
    assert one == two


def test_a_page_is_written_every_n_steps_and_its_failure_costs_no_training(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = small_config(store_directory(tmp_path), **{"train.report_every": 2, "train.steps": 4})
    steps: list[bool] = []

    def write(*arguments: Any) -> bool:
        if steps:
            monkeypatch.setattr("agent_jax.view.run.RunRecord.read", None)
        steps.append(write_page(*arguments))
        return steps[-1]

    monkeypatch.setattr(report, "write_page", write)
    ended = trained(config, tmp_path / "run")
    assert steps == [True, False]
    assert int(ended.state.step) == 4
    assert "has not ended" in (tmp_path / "run" / "report.html").read_text()


def test_memory_is_counted_in_bytes():
    before = peak_rss_bytes()
    block = bytearray(256 << 20)
    assert peak_rss_bytes() >= max(before, len(block))
