"""`python -m agent_jax.study rank`: Kendall's tau of offline metrics and success."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recorded_babyai import recorded_store
from tiny_checkpoints import make_checkpoint

from agent_jax.config import ClosedLoopConfig
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.in_training import ActingDomain
from agent_jax.study import rank as rank_module
from agent_jax.study.__main__ import main
from agent_jax.study.statistics import kendall_summary

pytest.importorskip("minigrid")


def test_tau_is_1_for_the_same_order_and_undefined_for_equal_values() -> None:
    same = kendall_summary([0.1, 0.2, 0.5, 0.9, 1.5], [0.0, 0.3, 0.4, 0.6, 0.7], seed=0)
    assert [same["tau"], *same["ci95"]] == pytest.approx([1.0, 1.0, 1.0])
    assert same["checkpoints"] == 5
    mixed = kendall_summary([1, 2, 3, 4, 5, 6], [1, 3, 2, 4, 6, 5], seed=0)
    assert mixed["tau"] == pytest.approx(11 / 15)  # 13 pairs in the same order, 2 in the other
    assert mixed["ci95"][0] < 11 / 15 < mixed["ci95"][1]
    assert kendall_summary([1, 1, 1], [1, 2, 3], seed=0)["tau"] is None
    assert kendall_summary([1], [1], seed=0)["tau"] is None


def test_every_checkpoint_is_scored_offline_and_in_its_simulator(tmp_path_factory: pytest.TempPathFactory,
                                                                 tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    store = str(recorded_store(tmp_path_factory.getbasetemp() / "evaluate_main" / "store").directory)
    made = make_checkpoint(tmp_path / "run" / "checkpoints", ["babyai"], domain_fields={"max_text": 40})
    assert main(["rank", str(made.path.parent)]) == 2
    assert "evaluates nothing in a simulator" in capsys.readouterr().err

    def acting(trained: TrainedRun, domain: str) -> list[ActingDomain]:
        return [ActingDomain("", "", ClosedLoopConfig("babyai", {"GoToObj": 50}), 0)]

    scored = rank_module.evaluate_offline

    def offline(*arguments: Any, **options: Any) -> Any:
        return scored(*arguments, data=store, **options)

    monkeypatch.setattr(rank_module, "_acting", acting)
    monkeypatch.setattr(rank_module, "evaluate_offline", offline)
    written = tmp_path / "found.json"
    assert main(["rank", str(made.path.parent), "--episodes", "2", "--rows", "2", "--json", str(written)]) == 0
    found = json.loads(written.read_text())
    (point,) = found["points"]
    assert (point["step"], point["domain"], point["tasks"]["GoToObj"]["episodes"]) == (7, "babyai", 2)
    assert 0 <= point["action_accuracy"] <= 1
    assert point["negative_nll"] < 0
    assert set(found["tau"]["babyai"]) <= {"bleu4", "action_accuracy", "negative_nll"}
    assert "undefined" in capsys.readouterr().out
    assert main(["rank", str(made.path.parent), "--steps", "8"]) == 2
    assert "--steps 8" in capsys.readouterr().err
