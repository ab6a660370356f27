"""`python -m agent_jax.plan` in its own process: the estimate on fake CPU devices, and user errors."""

import json
import os
import subprocess
import sys

import pytest
from ci_size import CI_SIZE

from agent_jax.plan.gpu_target import has_compiler

SMOKE = "tpu_v4.py:smoke"


def plan(root, *arguments, config=SMOKE):
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "1"}
    command = [sys.executable, "-m", "agent_jax.plan", f"--config={root / 'configs' / config}", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


def needs_an_estimate():
    if has_compiler():
        pytest.skip("the compiler for GPUs is installed here, and makes no estimate: tests/plan/test_cuda.py")


@pytest.fixture(scope="module")
def planned(root, tmp_path_factory):
    needs_an_estimate()
    path = tmp_path_factory.mktemp("plan") / "deep" / "plan.json"
    done = plan(root, "--topology=h100-16", "--config.mesh.data=4", "--global_batch=32", "--mfu=0.3", f"--json={path}")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text(encoding="utf-8"))


def test_a_plan_without_a_compiler_for_the_chip_says_that_it_is_an_estimate(planned):
    text, record = planned
    assert "ESTIMATE, not the chip's compiler: XLA's CPU compiler, for 16 fake devices" in text
    assert record["estimate"]
    assert record["mesh"] == {"replica": 1, "data": 4, "fsdp": 2, "tensor": 2}


def test_a_plan_has_memory_work_and_time(planned):
    text, record = planned
    for words in ("plan for h100-16: 16 chip(s), 16, on 2 host(s)", "batch: 32 rows = 8 shard(s) x 4 rows x 1",
                  "parameters: ", "optimizer state", "gradients, temporaries", "all-reduce", "FLOP a byte", "bound by",
                  "at an assumed MFU of 30%", "1.6e+20 FLOP"):
        assert words in text, words
    memory, roof = record["memory"], record["roofline"]
    state = 4 * sum(record["parameters"].values())
    assert state / 4 < memory["parameters"] < state  # split over fsdp 2 and tensor 2, less what is copied
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], abs=64)  # and counters
    assert memory["fits"]
    assert memory["total"] == sum(memory[name] for name in (
        "parameters", "optimizer", "batch", "padding", "temporary", "output", "code"))
    assert roof["at_peak"]["step_seconds"] == max(
        roof["compute_seconds"], roof["hbm_seconds"], roof["interconnect_seconds"])
    assert roof["assumed"]["mfu"] == pytest.approx(0.3)
    assert record["batch"]["frames"] == 32 * 4


def test_devices_together_compute_every_matrix_product(planned):
    roof = planned[1]["roofline"]
    total = roof["model_flops"] + roof["recomputed_flops"]
    # A tensor axis does not split some work: here the embedding of patches and the targets of a row.
    assert total <= 16 * roof["device_flops"] < 2.5 * total


@pytest.mark.parametrize(("arguments", "message"), [
    (["--topology=v4-33"], "agent_jax.plan: --topology=v4-33: unknown; expected one of"),
    (["--topology=v4-8"], "config.mesh.fsdp=2, config.mesh.tensor=2 ask for 8 devices, but there are 4"),
    (["--topology=v4-16", "--global_batch=6"], "config.train.batch_size=6 does not divide by 4"),
    (["--topology=v4-16", "--global_batch=9", "--config.train.accumulation=2", "--config.train.batch_size=8"],
     "--global_batch=9 must be a multiple of config.train.accumulation=2"),
    (["--topology=h100-8", "--config.model.attention=splash"],
     "config.model.attention='splash' does not run on h100; pass --config.model.attention=xla"),
    ([], "agent_jax.plan: --topology is missing"),
])
def test_a_user_error_is_one_message_and_status_2(root, arguments, message):
    done = plan(root, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_step_that_does_not_fit_exits_with_2(root):
    done = plan(root, "--topology=v5e-8", "--global_batch=2000000")
    assert done.returncode == 2
    assert "DOES NOT FIT" in done.stdout
    assert "agent_jax.plan: the step does not fit: " in done.stderr
    assert "config.train.rows_per_device" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "topology", "devices", "again"), [
    ("one", "h100-1", 1, True), ("node", "h100-8", 8, False), ("nodes", "h100-16", 16, False),
    ("opt-1.3b", "h100-8", 8, True), ("opt-6.7b", "h100-8", 8, True)])
def test_a_gpu_config_is_planned_in_ci_size(root, tmp_path, variant, topology, devices, again):
    needs_an_estimate()
    path = tmp_path / "plan.json"
    done = plan(root, f"--topology={topology}", *CI_SIZE, f"--json={path}", config=f"gpu.py:{variant}")
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["topology"]["devices"] == devices
    assert "the compiler for GPUs is not installed here" in record["estimate"]
    roof = record["roofline"]
    total = roof["model_flops"] + roof["recomputed_flops"]
    # Outside of a scan the compiler may find that remat computes some products twice, and compute them once.
    least = total if again else roof["model_flops"]
    assert 0.95 * least < roof["device_flops"] * devices < 1.2 * total
    assert bool(record["collectives"]) == (devices > 1)
