"""The GPU's own compiler on every GPU config in CI size: needs jax's CUDA plugin, but no GPU and no driver.

    python -m venv .venv-cuda && .venv-cuda/bin/pip install -e ".[cuda]" && .venv-cuda/bin/pip install pytest hypothesis
    .venv-cuda/bin/python -m pytest -m cuda_compile tests/plan/test_cuda.py
"""

import json
import os
import subprocess
import sys

import pytest
from ci_size import CI_SIZE

from agent_jax.plan.gpu_target import has_compiler

LIMIT_S = 5400  # CI runs it at low priority beside the tests
pytestmark = pytest.mark.cuda_compile

slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def needs_the_compiler():
    if not has_compiler():
        pytest.skip("needs jax's CUDA plugin: pip install -e '.[cuda]'")


@pytest.mark.parametrize(("variant", "topology"), [
    ("node", "h100-8"), ("nodes", "h100-16"), ("opt-1.3b", "h200-8"),
    # A node's without collectives; and, in CI size, opt-1.3b with fewer rows of a device.
    pytest.param("one", "a100-1", marks=slow), pytest.param("opt-6.7b", "h100-8", marks=slow)])
def test_a_config_compiles_for_its_topology(root, tmp_path, variant, topology):
    path = tmp_path / "plan.json"
    command = [sys.executable, "-m", "agent_jax.plan", f"--config={root / 'configs' / 'gpu.py'}:{variant}",
               f"--topology={topology}", *CI_SIZE, f"--json={path}"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
                          check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["estimate"] == ""
    assert record["memory"]["fits"]
    assert "attention cudnn" in done.stdout
    roof, devices = record["roofline"], record["topology"]["devices"]
    total = roof["model_flops"] + roof["recomputed_flops"]
    assert 0.9 * total < roof["device_flops"] * devices < 1.5 * total
    kinds = {each["kind"]: each for each in record["collectives"]}
    assert bool(kinds) == (devices > 1)
    if record["mesh"]["fsdp"] > 1:
        assert {"all-gather", "reduce-scatter"} <= set(kinds)
    if variant.startswith("opt"):  # in a scan, each kernel is gathered twice a microbatch, in bfloat16
        gathered = 2 * sum(record["parameters"].values()) * record["batch"]["microbatches"]
        assert kinds["all-gather"]["bytes"] > 0.3 * gathered


def test_the_steps_of_a_session_on_a_gpu_compile_for_its_card(root, tmp_path):
    path = tmp_path / "counts.json"
    command = [sys.executable, str(root / "benchmarks" / "gpu_counts.py"), "--topology=h200-1", "--size=tiny",
               "--depth=2", "--batch=2", "--modes=visible", f"--json={path}"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
                          check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    unrolled, scanned = json.loads(path.read_text(encoding="utf-8"))["steps"]
    assert [unrolled["model"], scanned["model"]] == ["unrolled", "ours"]
    for step in (unrolled, scanned):
        assert step["attention"] == "cudnn"
        product, attention = (step["kinds"][kind] for kind in ("matrix product", "attention kernel"))
        assert step["model_flops"] < product["flops"] + attention["flops"] < 1.5 * step["model_flops"]
        assert attention["kernels"] == 2 * 3 * 2  # forward and backward of two layers in each stack
    assert scanned["bytes"] > unrolled["bytes"]
