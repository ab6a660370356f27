"""The benchmark of the train step runs from end to end, on models that compute the same."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from agent_jax.plan.chips import CHIPS


@pytest.fixture
def benchmark(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module("train_step")
    for name in ("train_step", "train_step_worker", "product_rates"):
        del sys.modules[name]


def test_a_case_that_computes_something_else_is_refused(benchmark):
    ours, theirs = (benchmark.case_of(name, "all") for name in ("ours-f32", "exported-f32"))
    benchmark.check_losses({ours: {"losses": [24.0, 22.0]}, theirs: {"losses": [24.001, 22.5]}})
    with pytest.raises(ValueError, match="exported-f32, all: found a loss of 24.1 at step 0, expected 24 as ours-f32"):
        benchmark.check_losses({ours: {"losses": [24.0, 22.0]}, theirs: {"losses": [24.1, 22.0]}})


def test_what_fails_in_a_worker_is_raised_by_its_caller(benchmark):
    with pytest.raises(RuntimeError, match="no_such_precision"):
        benchmark.Worker("square", "jax", ("no_such_precision",), "tiny").answer()


def test_a_worker_that_is_killed_is_told(benchmark):
    worker = benchmark.Worker("square", "jax", ("f32",), "tiny")
    worker.answer()
    worker.kill()
    with pytest.raises(benchmark.WorkerError, match="exit code -9"):
        worker.step()
    assert worker.failed


@pytest.mark.parametrize("flags", [[], ["--together"]])
def test_a_run_that_is_cut_off_leaves_what_it_measured(benchmark, tmp_path, monkeypatch, flags):
    started = []

    class Fake:
        failed = False

        def __init__(self, kind, *arguments):
            self.kind, self.case = kind, arguments[1] if kind == "step" else None
            started.append(self)

        def answer(self):
            return {"visible": 10**9} if self.kind == "prepare" else {
                "device": "NVIDIA H200", "first_step_seconds": 3.0, "losses": [2.0, 1.9]}

        def step(self, count=1):
            if self.case and self.case.model == "exported" and self.case.precision == "bf16":
                sys.exit("cut off")
            return {"value": {"f32": 5e11, "bf16": 1e12}, "seconds": 0.1, "cpu_seconds": 0.1, "peak_device_bytes": 7}

        def end(self):
            self.kind = "ended"

        kill = end

    monkeypatch.setattr(benchmark, "Worker", Fake)
    path = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["train_step", "--modes", "visible", "--no-products", *flags, "--json", str(path),
                                      "--only", "ours-bf16", "exported-f32", "exported-bf16"])
    with pytest.raises(SystemExit, match="cut off"):
        benchmark.main()
    cases = json.loads(path.read_text())["cases"]
    assert [case["model"] for case in cases] == ["ours", "exported"]
    assert [case["peak_device_bytes"] for case in cases] == [7, 7]
    assert cases[0]["mfu"] == pytest.approx(10**9 / 0.1 / CHIPS["h200"].bf16_flops)
    assert {worker.kind for worker in started[1:]} == {"ended"}
    names = [worker.case.name for worker in started if worker.case]
    assert names == ["ours-bf16", "exported-f32", "exported-bf16"]


@pytest.mark.slow
def test_all_models_take_the_same_steps_in_both_precisions_also_where_the_reference_is_killed(
        benchmark, tmp_path, monkeypatch, capsys):
    started = []

    class Recorded(benchmark.Worker):
        def __init__(self, kind, *arguments):
            super().__init__(kind, *arguments)
            if kind == "step":
                started.append(self)

    class Killing(benchmark.Alone):
        def take(self, figures):  # a turn begins with it
            super().take(figures)
            if len(started) == 2:  # the reference, and the first case beside it
                started[0].kill()

    monkeypatch.setattr(benchmark, "Worker", Recorded)
    monkeypatch.setattr(benchmark, "Alone", Killing)
    names = ["ours-f32", "exported-bf16", "ours-bf16", "exported-f32", "transformers-f32", "transformers-bf16"]
    monkeypatch.setattr(sys, "argv", [
        "train_step", "--size", "tiny", "--frames", "2", "--batch", "2", "--text", "8", "--actions", "4",
        "--steps", "1", "--modes", "visible", "--only", *names, "--json", str(tmp_path / "found.json")])
    with pytest.raises(SystemExit, match="exported-bf16 beside ours-f32: a worker ended with exit code -9"):
        benchmark.main()  # which also compares the losses of the first steps
    content = json.loads((tmp_path / "found.json").read_text())
    assert len(content["failed"]) == 1
    found = {(case["model"], case["precision"]): case for case in content["cases"]}
    assert [f"{model}-{precision}" for model, precision in found] == [name for name in names if name != "exported-bf16"]
    [flops] = {case["model_flops"] for case in content["cases"]}
    for case in content["cases"]:
        assert case["seconds_per_step"] > 0
        assert case["peak_rss_bytes"] > 1e8
        assert case["flops_per_second"] == pytest.approx(flops / case["seconds_per_step"])
        assert (case["compile_seconds"] > 0) == (case["framework"] == "jax")
    assert "| visible | transformers-bf16 |" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "name"), [
    ("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"),
    ("NVIDIA GeForce RTX 4090", None), ("TPU v4", None), ("cpu", None)])
def test_a_gpu_is_found_by_its_device_kind(benchmark, kind, name):
    assert benchmark.gpu_of(kind) == (CHIPS[name] if name else None)
