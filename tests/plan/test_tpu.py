"""The TPU's own compiler on every TPU config in CI size: needs libtpu, but no TPU.

    python -m venv .venv-tpu && .venv-tpu/bin/pip install -e ".[tpu]" && .venv-tpu/bin/pip install pytest hypothesis
    .venv-tpu/bin/python -m pytest -m tpu_compile tests/plan/test_tpu.py

libtpu serves one process at a time, so do not use `-n`. A compile takes one to two minutes even for a small model: CI
runs only those that are not `slow`.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from ci_size import CI_SIZE

LIMIT_S = 5400  # CI runs it at low priority beside the tests
pytestmark = pytest.mark.tpu_compile

slow = pytest.mark.slow
CONFIGS = [("tpu_v5e.py", "v5e-16"), ("tpu_v4.py:opt-1.3b", "v4-128"),  # tpu_v4.py itself: on several slices, below
           *(pytest.param(config, topology, marks=slow) for config, topology in
             [*(("tpu_v4.py", size) for size in ("v4-8", "v4-32", "v4-128")), ("tpu_v4.py:opt-6.7b", "v4-128")])]


@pytest.fixture(autouse=True)
def needs_libtpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, the TPU's compiler: pip install -e '.[tpu]'")


def plan(root, config, topology, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "1"}
    command = [sys.executable, "-m", "agent_jax.plan", f"--config={root / 'configs' / config}",
               f"--topology={topology}", *CI_SIZE, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S)


def record_of(root, path, config, topology, *arguments):
    done = plan(root, config, topology, *arguments, f"--json={path}")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("config", "topology"), CONFIGS)
def test_a_config_compiles_for_its_topology(root, tmp_path, config, topology):
    record = record_of(root, tmp_path / "plan.json", config, topology)
    assert record["estimate"] == ""
    assert record["memory"]["fits"]
    roof = record["roofline"]
    total = roof["model_flops"] + roof["recomputed_flops"]
    assert 0.9 * total < roof["device_flops"] * record["topology"]["devices"] < 1.5 * total
    kinds = {each["kind"]: each for each in record["collectives"]}
    # Each kernel is gathered for the forward and the backward pass of every microbatch, in bfloat16, but for the
    # few that are not split; the encoder runs twice a step. Of opt-6.7b over 64 chips the compiler makes all-reduces.
    gathered = 2 * sum(record["parameters"].values()) * record["batch"]["microbatches"]
    assert kinds["all-reduce" if "opt-6.7b" in config else "all-gather"]["bytes"] > 0.5 * gathered
    assert not any("rematerialization" in warning for warning in record["warnings"])


@pytest.mark.parametrize(("topology", "replicas"), [
    ("2xv4-8", 2), pytest.param("v5p-8", 1, marks=slow), pytest.param("v6e-4", 1, marks=slow)])
def test_the_other_chips_and_several_slices_compile(root, tmp_path, topology, replicas):
    record = record_of(root, tmp_path / "plan.json", "tpu_v4.py", topology, f"--config.mesh.replica={replicas}")
    assert record["estimate"] == ""
    assert record["memory"]["temporary"] > 0


@slow
def test_a_scanned_step_computes_and_sends_the_same_as_the_unrolled_one(root, tmp_path):
    scanned, unrolled = (record_of(root, tmp_path / f"{unroll}.json", "tpu_v4.py", "v4-8",
                                   f"--config.model.unroll={unroll}") for unroll in (1, 2))
    for name in ("model_flops", "recomputed_flops"):
        assert scanned["roofline"][name] == unrolled["roofline"][name]
    assert scanned["roofline"]["device_flops"] == pytest.approx(unrolled["roofline"]["device_flops"], rel=0.05)
    sent = [sum(each["sent_bytes"] for each in record["collectives"]) for record in (scanned, unrolled)]
    assert sent[0] == pytest.approx(sent[1], rel=0.2)


@slow
def test_a_step_that_the_compiler_cannot_fit_is_refused_with_its_figures(root):
    done = plan(root, "tpu_v4.py", "v5e-4", "--global_batch=393216", "--config.model.remat=none")
    assert done.returncode == 2
    assert "the step does not fit a v5e of v5e-4: it needs " in done.stderr
    assert "Traceback" not in done.stderr
