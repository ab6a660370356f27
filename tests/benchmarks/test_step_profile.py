"""The profile of a step: what the compiled program says of an operation, and the command itself."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

# As XLA:GPU writes them, shortened: a product by cuBLAS, a fusion, a loop, a reduction.
PROGRAM = "\n".join((
    "  %custom-call.7 = (bf16[12800,3072]{1,0}, s8[33554432]{0}) custom-call(%a, %b), "
    'custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/jvp(Agent)/vision/mlp/up/dot_general"}',
    "  %loop_maximum_fusion = bf16[17920,3072]{1,0} fusion(%c), kind=kLoop, calls=%d, "
    'metadata={op_name="jit(step)/transpose(jvp(Agent))/Agent.read_row/language/while/body/mlp/jit(relu)/max"}',
    "  ROOT %while.2 = (s32[], /*index=5*/bf16[5,50432]{1,0}) while(%e), condition=%f, body=%g",
    "  %input_reduce_fusion.3 = f32[]{:T(128)} fusion(%h), kind=kInput, calls=%i, "
    'metadata={op_name="jit(step)/reduce_sum"}',
))


@pytest.fixture
def benchmark(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    yield importlib.import_module("step_profile")
    for name in ("step_profile", "train_step_worker", "product_rates"):
        sys.modules.pop(name, None)


def test_an_operation_is_known_by_its_name_and_by_that_of_its_kernel(benchmark):
    found = benchmark.instructions(PROGRAM)
    product, maximum, loop, total = (
        found[name] for name in ("custom-call.7", "loop_maximum_fusion", "while.2", "input_reduce_fusion.3"))
    assert (product.kind("nvjet_sm90_tst"), product.part()) == ("matrix product", "vision")
    assert (maximum.kind(""), maximum.part()) == ("elementwise", "language")
    assert loop.opcode in benchmark.CONTAINERS
    assert (total.kind(""), total.part()) == ("reduction", "optimizer and rest")
    assert found["input_reduce_fusion_3"] == total  # as its kernel is called


@pytest.mark.slow
def test_a_profile_tells_products_and_parts_of_a_step(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step_profile", "--size", "tiny", "--steps", "1", "--top", "3", "--json",
                                      str(tmp_path / "found.json")])
    benchmark.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum(found["by_kind"].values()) == pytest.approx(sum(found["by_part"].values()))
    assert found["by_kind"]["matrix product"] > 0
    assert {"vision", "mae", "language"} <= set(found["by_part"])
    assert found["operations"][0]["traced"]
    assert "matrix product" in capsys.readouterr().out
