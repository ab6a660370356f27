"""`python -m agent_jax.study transfer`: plan, runs, statistics and report, on reports that the tests write."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from agent_jax.config import from_config_dict
from agent_jax.evaluate.statistics import holm
from agent_jax.json_files import write_json
from agent_jax.study import runs as runs_module
from agent_jax.study.__main__ import main
from agent_jax.study.plan import Arm, Comparison, Target, TransferPlan, canonical, freeze, frozen_form, load_plan
from agent_jax.study.results import study_results
from agent_jax.study.run_config import changed_config, load_function, read_run_config, write_run_config
from agent_jax.study.runs import StudyRun, do_runs, missing_runs, runs_of, split_over_levels
from agent_jax.study.statistics import difference_summary, smallest_detectable

ROOT = Path(__file__).resolve().parents[2]
SMOKE = f"{ROOT / 'configs' / 'babyai.py'}:smoke"
SEEDS = (1, 2, 3, 4)


def make_plan(**changes: Any) -> TransferPlan:
    target = Target(SMOKE, {"GoToObj": 1.0}, (2, 6), {"GoToObj": 4}, steps=3)
    plan = TransferPlan(
        "tiny", {"scratch": Arm(), "joint": Arm(SMOKE, {"train.steps": 2}, (0, 7)),
                 "longer": Arm(steps={"near": 5}, overrides={"optimizer.learning_rate": 1e-3})},
        {"near": target, "far": dataclasses.replace(target, demonstrations=(3, 9))},
        Comparison("joint", "scratch", SEEDS, 1, margin=0.1),
        {"compute": Comparison("longer", "scratch", SEEDS[:2], 0, targets=("near",))},
        curve_arms=("scratch", "joint"), curve_seeds=(1, 2))
    return dataclasses.replace(plan, **changes)


def plan_file(path: Path, plan: TransferPlan) -> str:
    path.write_text(f"from agent_jax.study.plan import *\n\n\ndef get_plan():\n    return {plan!r}\n")
    return str(path)


def write_report(directory: Path, run: StudyRun, successes: Sequence[bool]) -> None:
    """A report.json in the form of agent_jax.train, with these episodes of each policy."""
    config = dataclasses.asdict(from_config_dict(changed_config(run.config, run.values, run.name)))
    per_episode = [{"seed": 10**9 + i, "success": bool(one), "steps": 5 if one else 64, "instruction": "go to it"}
                   for i, one in enumerate(successes)]
    summary = {"success": float(np.mean(successes)), "episodes": len(successes), "ci95": [0.0, 1.0],
               "mean_steps": 9.0, "lost": [], "per_episode": per_episode}
    tasks = {task: {"greedy": summary, "sampled": summary} for task in config["closed_loop"]["episodes"]}
    write_json(run.workdir(directory) / "report.json", {"closed_loop": tasks, "steps": run.steps, "config": config})


def rate(number: int) -> list[bool]:
    return [i < number for i in range(20)]


def test_the_plan_is_written_once_with_its_hash_and_a_changed_one_is_refused_by_its_fields(tmp_path: Path) -> None:
    plan, out = make_plan(), tmp_path / "out"
    sha256 = freeze(plan, out)
    written = json.loads((out / "plan.json").read_text())
    assert written["plan"]["primary"]["margin"] == 0.1
    assert written["configs"]["arms.joint"]["train"]["steps"] == 2
    content = {key: written[key] for key in ("plan", "configs")}
    assert sha256 == written["sha256"] == hashlib.sha256(canonical(content).encode()).hexdigest()
    assert freeze(load_plan(plan_file(tmp_path / "plan.py", plan)), out) == sha256
    changed = make_plan(primary=dataclasses.replace(plan.primary, margin=0.2), alpha=0.1)
    with pytest.raises(ValueError, match=r"plan.alpha: found 0.05, now 0.1; plan.primary.margin: found 0.1, now 0.2"):
        freeze(changed, out)
    assert json.loads((out / "plan.json").read_text()) == written
    other = make_plan(arms={**plan.arms, "joint": Arm(SMOKE, {"train.steps": 3}, (0, 7))})
    with pytest.raises(ValueError, match=r"configs.arms.joint.train.steps: found 2, now 3"):
        freeze(other, out)
    assert frozen_form(other)["sha256"] != sha256


@pytest.mark.parametrize(("changes", "message"), [
    ({"primary": Comparison("joint", "nothing", SEEDS)}, r"plan.primary.baseline: found 'nothing', expected one of"),
    ({"primary": Comparison("joint", "scratch", (1,))}, r"plan.primary.seeds: found \(1,\)"),
    ({"primary": Comparison("joint", "scratch", SEEDS, 2)}, r"plan.primary.demonstrations: found 2"),
    ({"primary": Comparison("joint", "scratch", SEEDS, margin=0.0)}, r"plan.primary.margin: found 0.0"),
    ({"curve_arms": ("other",)}, r"plan.curve_arms: found 'other'"),
    ({"alpha": "small"}, r"plan.alpha: found 'small'"),
    ({"arms": {"a/b": Arm()}}, r"plan.arms: found the name 'a/b'"),
])
def test_mistakes_in_a_plan_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_plan(plan_file(tmp_path / "plan.py", make_plan(**changes)))


def test_a_field_that_a_config_lacks_is_named(tmp_path: Path) -> None:
    plan = make_plan(arms={"scratch": Arm(), "joint": Arm(SMOKE, {"train.step": 2}), "longer": Arm()})
    with pytest.raises(ValueError, match=r"joint.*'train.step'.*did you mean 'train.steps'"):
        freeze(plan, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none.py: no such file"):
        changed_config("none.py", {}, "here")
    with pytest.raises(ValueError, match="found no function get_plan"):
        load_plan(ROOT / "configs" / "default.py")


def test_the_runs_are_those_of_comparisons_and_curves_with_shared_pretraining() -> None:
    runs = runs_of(make_plan())
    by_name = {run.name: run for run in runs}
    assert len(by_name) == len(runs)
    assert [run.name for run in runs if not run.acts] == ["pretrain/joint-seed0", "pretrain/joint-seed7"]
    for number, run in enumerate(runs):
        assert not run.start or runs.index(by_name[run.start]) < number
    # primary: 2 targets x 2 arms x 4 seeds; curves: 2 targets x 2 arms x 2 seeds at the other K; compute: 2 more
    assert len(runs) == 2 + 16 + 8 + 2
    run = by_name["near/k6/joint-seed2"]
    assert (run.start, run.steps, run.acts) == ("pretrain/joint-seed7", 3, True)
    assert by_name["near/k2/longer-seed1"].steps == 5
    assert run.values["data.demonstrations.episodes"] == {"GoToObj": 6}
    for seed in SEEDS:
        arm, baseline = (by_name[f"far/k9/{arm}-seed{seed}"].values for arm in ("joint", "scratch"))
        assert arm == baseline  # nothing but the parameters that it starts from
        assert arm["data.demonstrations.seed"] == arm["seed"] == seed
    same = make_plan(arms={**make_plan().arms, "longer": Arm(SMOKE, {"train.steps": 2})})
    assert {run.name for run in runs_of(same) if not run.acts} == {"pretrain/joint-seed0", "pretrain/joint-seed7"}


@pytest.mark.parametrize(("k", "shares", "expected"), [
    (10, {"a": 1.0}, {"a": 10}),
    (10, {"a": 0.5, "b": 0.5}, {"a": 5, "b": 5}),
    (5, {"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 3, "b": 1, "c": 1}),
    (3, {"a": 0.9, "b": 0.05, "c": 0.05}, {"a": 1, "b": 1, "c": 1}),
])
def test_demonstrations_are_split_over_levels(k: int, shares: dict[str, float], expected: dict[str, int]) -> None:
    assert split_over_levels(k, shares) == expected
    with pytest.raises(ValueError, match="found 1 for 2 levels"):
        split_over_levels(1, {"a": 0.5, "b": 0.5})


def test_a_run_reads_the_config_that_was_written(tmp_path: Path) -> None:
    run = next(run for run in runs_of(make_plan()) if "longer" in run.name)
    write_run_config(tmp_path, run.config, run.values)
    config = from_config_dict(read_run_config(tmp_path))
    assert config.data.demonstrations.episodes == {"GoToObj": 2}
    assert (config.train.steps, config.optimizer.learning_rate) == (5, 1e-3)
    assert load_function(str(tmp_path / "config.py"), "get_config")().to_dict() == read_run_config(
        tmp_path).to_dict()


def fake_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Replace the training: it appends its workdir to a file and writes a report; a run below "far" fails."""
    order = tmp_path / "order.txt"
    script = textwrap.dedent(f"""
        import json, pathlib, sys
        workdir = pathlib.Path(sys.argv[1])
        with open({str(order)!r}, "a") as file:
            print(workdir, file=file)
        if "far" in workdir.parts:
            print("a reason")
            sys.exit(2)
        start = json.loads((workdir / "values.json").read_text())["values"].get("init.checkpoint", "")
        assert not start or (pathlib.Path(start) / "report.json").exists()
        (workdir / "report.json").write_text(json.dumps({{"closed_loop": {{"GoToObj": {{}}}}, "start": start}}))
    """)
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        assert command[1:3] == ["-m", "agent_jax.train"]
        return popen([sys.executable, "-S", "-c", script, command[-1]], **options)

    monkeypatch.setattr(runs_module.subprocess, "Popen", start)
    return order


def test_only_missing_runs_are_done_and_a_failed_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = fake_training(monkeypatch, tmp_path)
    runs = [run for run in runs_of(make_plan())
            if run.name.startswith(("pretrain", "near/k6/joint", "far/k9/joint-seed1"))]
    failures = do_runs(runs, tmp_path, processes=3, log=lambda line: None)
    assert len(failures) == 1
    assert "far/k9/joint-seed1: failed with status 2" in failures[0]
    assert "a reason" in failures[0]
    assert [run.name for run in missing_runs(runs, tmp_path)] == ["far/k9/joint-seed1"]
    assert len(order.read_text().splitlines()) == len(runs)
    near = next(run for run in runs if run.name == "near/k6/joint-seed1")
    report = near.report(tmp_path)
    assert report is not None
    assert report["start"].endswith("pretrain/joint-seed0")
    (near.workdir(tmp_path) / "report.json").unlink()
    do_runs(runs, tmp_path, processes=1, log=lambda line: None)
    assert sorted(order.read_text().splitlines()[len(runs) :]) == sorted(
        str(run.workdir(tmp_path)) for run in runs if run is near or "far" in run.name)


def test_runs_that_start_from_a_failed_one_do_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_training(monkeypatch, tmp_path)
    runs = [StudyRun("far/a", SMOKE, {}, 1), StudyRun("near/k1/a-seed0", SMOKE, {}, 1, "far/a")]
    failures = do_runs(runs, tmp_path, processes=1, log=lambda line: None)
    assert failures[0].startswith("far/a: failed with status 2")
    assert failures[1] == "near/k1/a-seed0: not begun, because far/a failed"


def test_the_report_has_the_figures_of_scipy(tmp_path: Path) -> None:
    plan, out = make_plan(), tmp_path / "out"
    runs = runs_of(plan)
    numbers = {"near": {"joint": (15, 16, 14, 17), "scratch": (8, 9, 8, 9)},
               "far": {"joint": (10, 11, 10, 11), "scratch": (10, 10, 11, 11)}}
    for run in runs:
        if run.acts and "longer" not in run.name:
            target, _, last = run.name.split("/")
            arm, seed = last.split("-seed")
            write_report(out, run, rate(numbers[target][arm][int(seed) - 1]))
    assert main(["transfer", plan_file(tmp_path / "plan.py", plan), "--out", str(out), "--report_only"]) == 0
    found = json.loads((out / "report.json").read_text())
    targets = found["comparisons"]["primary"]["targets"]
    p_values = []
    for target, arms in numbers.items():
        arm, baseline = (np.array(arms[name]) / 20 for name in ("joint", "scratch"))
        test = stats.ttest_rel(arm, baseline)
        p_values.append(float(test.pvalue))
        one = targets[target]
        assert (one["mean"], one["p"]) == pytest.approx((float(np.mean(arm - baseline)), float(test.pvalue)))
        assert one["ci"] == pytest.approx(list(test.confidence_interval(0.95)))
        equivalence = max(stats.ttest_1samp(arm - baseline, -0.1, alternative="greater").pvalue,
                          stats.ttest_1samp(arm - baseline, 0.1, alternative="less").pvalue)
        assert one["p_equivalence"] == pytest.approx(float(equivalence))
        assert one["pairs"]["1"] == [arm[0], baseline[0]]
    assert targets["near"]["p_holm"] == pytest.approx(2 * min(p_values))
    assert (targets["near"]["verdict"], targets["far"]["verdict"]) == ("helps", "no difference within 10.0%")
    assert found["comparisons"]["compute"]["targets"]["near"]["verdict"] == "unfinished: 0 of 2 seeds"
    assert set(found["missing_runs"]) == {run.name for run in runs if not run.acts or "longer" in run.name}
    points = found["curves"]["near"]["joint"]
    assert [(point["demonstrations"], point["seeds"]) for point in points] == [(2, 2), (6, 2)]
    assert points[1]["mean"] == pytest.approx(15.5 / 20)
    assert points[1]["ci"][1] == 1  # the t-interval ends above it
    plot = (out / "curves.svg").read_text()
    assert plot.startswith("<?xml")
    assert all(f">{number}</text>" in plot for number in (2, 6))  # ticks at the numbers of demonstrations
    markdown = (out / "report.md").read_text()
    assert found["sha256"] in markdown
    assert "| helps |" in markdown


def test_equivalence_and_its_interval_agree_and_equal_differences_have_no_deviation() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        found = difference_summary(list(random.normal(0.02, 0.05, 6)), margin=0.06, alpha=0.05)
        low, high = found["equivalence_interval"]
        assert (found["p_equivalence"] < 0.05) == (low > -0.06 and high < 0.06)
    none = difference_summary([0.0, 0.0, 0.0], margin=0.05, alpha=0.05)
    assert (none["p"], none["p_equivalence"], none["ci"]) == (1.0, 0.0, [0.0, 0.0])
    equal = difference_summary([0.8 - 0.6, 0.7 - 0.5, 0.3 - 0.1], margin=0.05, alpha=0.05)
    assert (equal["p"], equal["p_equivalence"]) == (0.0, 1.0)


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_never_decreases() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(p, "holm")
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_smallest_detectable_difference_is_detected_with_the_power() -> None:
    std, seeds = 0.1, 8
    shift = smallest_detectable(std, seeds, alpha=0.05, power=0.8)
    samples = np.random.default_rng(0).normal(shift, std, (4000, seeds))
    assert np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)
    assert smallest_detectable(0.0, 4, alpha=0.05, power=0.8) == 0.0


@pytest.mark.parametrize("seeds", [2, 3, 4, 8, 20])
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
@pytest.mark.parametrize("power", [0.8, 0.95])
def test_a_smallest_detectable_difference_is_found_for_few_and_many_seeds(seeds: int, alpha: float, power: float):
    assert math.isfinite(smallest_detectable(0.1, seeds, alpha=alpha, power=power))


def test_episodes_count_if_they_end_before_a_step_and_other_conditions_are_refused(tmp_path: Path) -> None:
    plan = make_plan()
    reached = dataclasses.replace(plan.targets["near"], reached_before=60)
    plan = dataclasses.replace(plan, targets={**plan.targets, "near": reached})
    runs = {run.name: run for run in runs_of(plan)}
    first, other = runs["near/k6/joint-seed1"], runs["near/k6/scratch-seed1"]
    write_report(tmp_path, first, rate(4))
    assert study_results(plan, "", list(runs.values()), tmp_path)["scores"] == {first.name: 1.0}  # failures are longer
    write_report(tmp_path, other, rate(4)[:-1])
    with pytest.raises(ValueError, match=r"(joint|scratch)-seed1 and .*: seeds of the episodes differs"):
        study_results(plan, "", list(runs.values()), tmp_path)
    changed = dataclasses.replace(other, values={**other.values, "data.demonstrations.noise": 0.5})
    write_report(tmp_path, changed, rate(4))
    with pytest.raises(ValueError, match=r"config.data.demonstrations differs"):
        study_results(plan, "", list(runs.values()), tmp_path)


def test_a_dry_run_prints_runs_and_steps_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = plan_file(tmp_path / "plan.py", make_plan()), tmp_path / "out"
    assert main(["transfer", file, "--out", str(out), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "near/k6/joint-seed2" in printed
    assert "28 of 28 runs are missing, 86 steps" in printed
    assert not out.exists()
    assert main(["transfer", file, "--out", str(out), "--processes", "0"]) == 2
    assert "--processes 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tiny_study_from_plan_to_report_continues_with_what_is_missing(tmp_path: Path) -> None:
    # Programs are compiled once for all runs.
    data = {"data.directory": str(tmp_path / "data"), "train.compile_cache": str(tmp_path / "compiled")}
    target = Target(SMOKE, {"GoToObj": 1.0}, (2,), {"GoToObj": 2}, steps=2, overrides=data)
    plan = TransferPlan("tiny", {"scratch": Arm(), "joint": Arm(SMOKE, {"train.steps": 2, **data})}, {"near": target},
                        Comparison("joint", "scratch", (1, 2), 0))
    file, out = plan_file(tmp_path / "plan.py", plan), tmp_path / "out"
    assert main(["transfer", file, "--out", str(out), "--processes", "2"]) == 0
    found = json.loads((out / "report.json").read_text())
    assert found["missing_runs"] == []
    assert not found["comparisons"]["primary"]["targets"]["near"]["verdict"].startswith("unfinished")
    runs = [run for run in runs_of(plan) if run.acts]
    arm = next(run for run in runs if run.start)
    report = json.loads((arm.workdir(out) / "report.json").read_text())
    assert "pretrain" in report["start"]
    assert set(report["closed_loop"]["GoToObj"]) == {"greedy", "sampled"}  # without baselines
    times = {run.name: (run.workdir(out) / "report.json").stat().st_mtime_ns for run in runs}
    (arm.workdir(out) / "report.json").unlink()
    assert main(["transfer", file, "--out", str(out)]) == 0
    later = {run.name: (run.workdir(out) / "report.json").stat().st_mtime_ns for run in runs}
    assert {name for name in times if later[name] != times[name]} == {arm.name}
    assert json.loads((out / "report.json").read_text())["scores"] == found["scores"]
