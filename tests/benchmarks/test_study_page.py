"""The page of studies follows from the committed plans and outcomes."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import study_page

from agent_jax.config import from_config_dict
from agent_jax.json_files import write_json
from agent_jax.study.plan import Arm, Comparison, Target, TransferPlan, freeze, load_plan
from agent_jax.study.run_config import changed_config
from agent_jax.study.runs import runs_of

STUDIES = study_page.RESULTS / "studies"
ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_page_is_that_of_the_committed_outcomes(tmp_path: Path):
    (tmp_path / "studies").mkdir()
    studies = {path.stem: json.loads(path.read_text()) for path in sorted(STUDIES.glob("*.json"))}
    assert studies
    assert (study_page.RESULTS / "studies.md").read_text() == study_page.page(studies, tmp_path)
    for picture in (tmp_path / "studies").glob("*.svg"):
        assert (STUDIES / picture.name).exists()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A finished study of two arms and two seeds, whose arm solves 3 of 4 episodes and whose baseline 1 or 2."""
    smoke = f"{ROOT / 'configs' / 'babyai.py'}:smoke"
    plan = TransferPlan("two", {"a": Arm(), "b": Arm(overrides={"loss.mae": 0.0})},
                        {"near": Target(smoke, {"GoToObj": 1.0}, (2,), {"GoToObj": 4}, steps=3)},
                        Comparison("b", "a", (0, 1)))
    directory = tmp_path / "study"
    freeze(plan, directory)
    for run in runs_of(plan):
        solved = 3 if "/b-" in run.name else 1 + int(run.name[-1])
        config = dataclasses.asdict(from_config_dict(changed_config(run.config, run.values, run.name)))
        episodes: list[Any] = [{"seed": seed, "success": seed < solved, "steps": 3} for seed in range(4)]
        write_json(run.workdir(directory) / "report.json", {
            "closed_loop": {"GoToObj": {"greedy": {"per_episode": episodes, "lost": []}}}, "config": config,
            "date": f"2026-01-0{1 + solved}", "seconds": {"step": 900.0}})
    return directory


def test_figures_are_computed_from_the_packed_outcomes(study: Path, tmp_path: Path):
    packed = study_page.packed(study, "plan.py")
    assert packed["outcomes"]["near/k2/a-seed1"] == {"GoToObj": "1100"}
    text = study_page.page({"two": json.loads(json.dumps(packed))}, tmp_path)
    assert "2026-01-04; 4 runs, 1.0 hours" in text
    assert re.search(r"primary: b against a \| near \| 2 \| 2/2 \| 37.5% \| 75.0% \| \+37.5% \|", text)
    packed["outcomes"]["near/k2/b-seed1"]["GoToObj"] = "1111"
    assert "| 37.5% | 87.5% | +50.0% |" in study_page.page({"two": packed}, tmp_path)


def test_a_plan_that_is_not_that_of_its_hash_is_refused(study: Path):
    packed = study_page.packed(study, "plan.py")
    packed["frozen"]["plan"]["primary"]["margin"] = 0.2
    with pytest.raises(ValueError, match="SHA-256"):
        study_page.results(packed)


@pytest.mark.parametrize("name", ["ablations", "goto2", "transfer"])
def test_the_runs_of_the_committed_outcomes_are_those_of_the_plan_file(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)  # plans name config files from the checkout
    runs = {run.name for run in runs_of(load_plan(ROOT / "benchmarks" / "study" / f"{name}.py")) if run.acts}
    study = json.loads((STUDIES / f"{name}.json").read_text())
    assert runs == {*study["outcomes"], *study["missing_runs"]}
