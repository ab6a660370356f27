"""Weights & Biases: gets the scalars of TensorBoard, is continued by a resumed run, and never stops a training."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from etils import epath

from agent_jax.config import Config, LogConfig, from_config_dict, to_config_dict
from agent_jax.train.metrics import MetricsLog, Record
from agent_jax.train.wandb_run import WandbRun

CONFIG = Config(log=LogConfig(wandb="lab/agents"))


def log_steps(workdir: Path, *steps: int, config: Config = CONFIG) -> None:
    with WandbRun(config, epath.Path(workdir), workdir) as run:
        log = MetricsLog(workdir, steps[0] - 1, wandb=run)
        for step in steps:
            log.write(Record(step, "train", 0.0, 2.5, {"action": 0.5, "mae": float("nan")}, {}))
        log.close()


class FakeRun:
    def __init__(self, calls: list[Any], error: Exception | None):
        self.calls, self.error = calls, error

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, scalars: dict[str, float]) -> None:
        self.calls.append(scalars)
        if self.error:
            raise self.error

    def finish(self, **fields: Any) -> None:
        self.calls.append(fields)


def fake(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> tuple[list[Any], list[Any]]:
    calls, opened = [], []

    def init(**fields: Any) -> FakeRun:
        opened.append(fields)
        return FakeRun(calls, error)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    return calls, opened


def test_a_resumed_run_continues_the_same_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls, opened = fake(monkeypatch)
    log_steps(tmp_path / "a", 1, 2)
    log_steps(tmp_path / "a", 3)
    log_steps(tmp_path / "b", 1)
    assert opened[0]["id"] == opened[1]["id"] != opened[2]["id"]
    assert (opened[0]["entity"], opened[0]["project"], opened[0]["name"]) == ("lab", "agents", "a")
    assert opened[0]["config"]["log"] == {"wandb": "lab/agents"}
    assert calls[:3] == [{"train/loss": 2.5, "train/losses/action": 0.5, "step": 1},
                         {"train/loss": 2.5, "train/losses/action": 0.5, "step": 2}, {"exit_code": 0}]
    with pytest.raises(RuntimeError), WandbRun(CONFIG, epath.Path(tmp_path / "a"), tmp_path / "a"):
        raise RuntimeError
    assert calls[-1]["exit_code"] == 1
    log_steps(tmp_path / "c", 1, config=Config())
    assert len(opened) == 4
    assert not (tmp_path / "c" / "wandb_id").exists()


def test_a_failing_service_is_warned_of_once_and_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    fake(monkeypatch, ConnectionError("no route"))
    with caplog.at_level(logging.WARNING):
        log_steps(tmp_path, 1, 2, 3)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    [warning] = [record.getMessage() for record in caplog.records if "config.log.wandb" in record.getMessage()]
    assert "ConnectionError: no route" in warning


@pytest.mark.parametrize("name", ["a/b/c", "a b", "/a", "a/"])
def test_a_wrong_project_is_refused(name: str):
    draft = to_config_dict(Config()).unlock()
    draft.log.wandb = name
    with pytest.raises(ValueError, match=r"config\.log\.wandb=.*expected PROJECT or ENTITY/PROJECT"):
        from_config_dict(draft)


def test_offline_runs_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_steps(tmp_path, 1, 2)
    log_steps(tmp_path, 3)
    ident = (tmp_path / "wandb_id").read_text()
    files = [*tmp_path.glob(f"wandb/offline-run-*/run-{ident}.wandb")]
    assert len(files) == 2
    deadline = time.monotonic() + 60  # wandb writes in a process of its own
    while not all(b"train/losses/action" in file.read_bytes() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.1)
