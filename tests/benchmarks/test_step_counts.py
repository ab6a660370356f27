"""No regression unseen: what the compiled step costs, against the figures on record. Counted, not timed."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

HOW = """
If the change is meant to cost this, or saves it, write the new figures and commit them with it, for every version of
jax that the file has (in an environment of each):

    python benchmarks/step_counts.py --write
"""


@pytest.fixture(scope="module")
def benchmark(root):
    sys.path.insert(0, str(root / "benchmarks"))
    yield importlib.import_module("step_counts")
    sys.path.remove(str(root / "benchmarks"))
    del sys.modules["step_counts"]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["float32, all", "bfloat16, visible, dots", "bfloat16 without its instructions"])
def test_the_compiled_step_costs_what_is_on_record(benchmark, step):
    stored = json.loads(benchmark.FILE.read_text())
    assert stored.keys() == benchmark.STEPS.keys()
    found = benchmark.counts(step)
    lines = benchmark.differences(found, benchmark.expected(stored, step))
    assert not lines, f"the train step ({step}), jax {benchmark.jax_minor()}:\n" + "\n".join(lines) + HOW


def test_more_and_less_than_allowed_are_both_told(benchmark):
    wanted = {"matmul_flops": 100, "fusions": 100}
    assert benchmark.differences({"matmul_flops": 100, "fusions": 104}, wanted) == []
    assert benchmark.differences({"matmul_flops": 101, "fusions": 94}, wanted) == [
        "matmul_flops: found 101, expected 100 (+1.0%, allowed 0%)",
        "fusions: found 94, expected 100 (-6.0%, allowed 5%)"]


def test_of_an_unknown_version_only_what_no_version_changes_is_compared(benchmark, monkeypatch):
    stored = {"step": {"matmul_flops": 7, "compiled": {"0.10": {"fusions": 3}}}}
    monkeypatch.setattr(benchmark, "jax_minor", lambda: "0.10")
    assert benchmark.expected(stored, "step") == {"matmul_flops": 7, "fusions": 3}
    monkeypatch.setattr(benchmark, "jax_minor", lambda: "0.99")
    assert benchmark.expected(stored, "step") == {"matmul_flops": 7}
