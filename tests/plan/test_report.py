"""Rooflines and the text of a plan, from a step compiled on the CPU."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from agent_jax.batch import RowSize
from agent_jax.config import (
    Config,
    DataConfig,
    DomainConfig,
    LanguageConfig,
    MaeConfig,
    MeshConfig,
    ModelConfig,
    TrainConfig,
    VisionConfig,
)
from agent_jax.plan.compiled import compile_step, hidden_warnings, rematerialised, too_large
from agent_jax.plan.messages import captured_stderr
from agent_jax.plan.report import plan_record, plan_text
from agent_jax.plan.roofline import DAY, PAPER_FLOPS, roofline
from agent_jax.plan.row import PlannedRow
from agent_jax.plan.topology import find_topology
from agent_jax.runtime import sharding

SIZES = {"width": 16, "depth": 2, "heads": 4, "mlp_width": 32}
ROW = RowSize(frames=2, image_size=16, slots=40, targets=4)


@pytest.fixture(scope="module")
def planned():
    model = ModelConfig(vision=VisionConfig(image_size=16, patch_size=4, **SIZES), mae=MaeConfig(**SIZES), remat="full",
                        language=LanguageConfig(positions=40, vocabulary_size=70, vocabulary_multiple=8, **SIZES))
    config = Config(model=model, data=DataConfig(domains={"one": DomainConfig()}), mesh=MeshConfig(data=1, fsdp=2),
                    train=TrainConfig(batch_size=8, accumulation=2))
    row = PlannedRow(ROW, config, ("a note",))
    return compile_step(config, row, jax.devices()[:2], "fake devices"), row


def test_a_roofline_is_the_longest_of_compute_memory_and_communication(planned):
    step, _ = planned
    topology = find_topology("h100-2")
    roof = roofline(step, topology, frames=16, mfu=0.25)
    chip, speed = topology.chip, roof.at_peak
    assert roof.compute_seconds == step.device_flops / chip.f32_flops  # the model is float32
    assert roof.hbm_seconds == step.device_bytes / chip.hbm_bandwidth
    sent = sum(each.sent_bytes for each in step.collectives)
    assert roof.interconnect_seconds == pytest.approx(sent / chip.link_bandwidth)
    assert speed.step_seconds == max(roof.compute_seconds, roof.hbm_seconds, roof.interconnect_seconds)
    assert roof.in_turn.step_seconds == pytest.approx(
        max(roof.compute_seconds, roof.hbm_seconds) + roof.interconnect_seconds)
    assert speed.frames_per_second == 16 / speed.step_seconds
    assert speed.paper_days == pytest.approx(PAPER_FLOPS / roof.model_flops * speed.step_seconds / DAY)
    assert speed.paper_chip_hours == pytest.approx(speed.paper_days * 24 * 2)
    assert roof.assumed.mfu == pytest.approx(0.25)
    assert roof.recomputed_flops > 0.2 * roof.model_flops  # remat full: most of the forward pass once more


@pytest.mark.slow
@pytest.mark.usefixtures("splash_here")
def test_scores_that_a_kernel_recomputes_do_not_count_as_operations_of_the_model(planned):
    step, row = planned
    config = dataclasses.replace(step.config, model=dataclasses.replace(step.config.model, attention="splash"))
    flash = compile_step(config, row, jax.devices()[:2], "fake devices")
    assert flash.model_flops == step.model_flops
    assert flash.recomputed_flops > step.recomputed_flops


def test_bfloat16_uses_the_chips_higher_peak(planned):
    step, _ = planned
    topology = find_topology("h100-2")
    config = dataclasses.replace(step.config, model=dataclasses.replace(step.config.model, dtype="bfloat16"))
    narrow = roofline(dataclasses.replace(step, config=config), topology, 16, 0.4)
    assert narrow.compute_seconds == step.device_flops / topology.chip.bf16_flops


def test_a_plan_lists_memory_by_category_and_warns_of_replicated_arrays(planned, monkeypatch):
    step, row = planned
    topology = find_topology("h100-2")
    roof = roofline(step, topology, 16, 0.4)
    record = plan_record(step, topology, row, roof, 0.4)
    text = plan_text(record)
    for words in ("mesh: {'replica': 1, 'data': 1, 'fsdp': 2, 'tensor': 1}; float32, remat full", "a note",
                  "optimizer state", "fits",
                  "batch: 8 rows = 2 shard(s) x 2 rows x 2 microbatch(es); 16 frames a step"):
        assert words in text, words
    assert not any("matches no rule" in line for line in record["warnings"])
    # The same step, with rules that do not name the kernels and a lower bound for large arrays.
    monkeypatch.setattr("agent_jax.plan.report.LARGE_ELEMENTS", 500)
    monkeypatch.setattr("agent_jax.plan.report.rule_for", lambda path: len(sharding.RULES) - 1)
    warned = plan_text(plan_record(step, topology, row, roof, 0.4))
    assert "warning: params/language/blocks/mlp/up/kernel (2, 16, 32) matches no rule of sharding.RULES" in warned
    monkeypatch.undo()
    monkeypatch.setattr("agent_jax.plan.report.COPIED_BYTES", 2_000)
    warned = plan_text(plan_record(step, topology, row, roof, 0.4))
    assert "warning: params/language/token_embedding (72, 16) is whole on every device of this mesh" in warned


def look_up_in_a_table_split_both_ways():
    """Run by the test below in a process whose log level shows warnings; prints the arrays found in them."""
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    table = jax.ShapeDtypeStruct((64, 32), np.float32, sharding=place("tensor", "fsdp"))
    ids = jax.ShapeDtypeStruct((8, 16), np.int32, sharding=place(("data", "fsdp")))

    def rows(table, ids):
        return jax.lax.with_sharding_constraint(jnp.take(table, ids, axis=0, mode="clip"), place(("data", "fsdp")))

    with captured_stderr() as log:
        jax.jit(rows).lower(table, ids).compile()
    print(rematerialised(log.text))
    print(hidden_warnings())


@pytest.mark.parametrize("level", ["1", "3"])
def test_rematerialised_arrays_are_read_from_the_compilers_log(root, level):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": level, "PYTHONPATH": f"{root}:{Path(__file__).parent}"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # programs from there come without warnings
    script = f"import {Path(__file__).stem} as t; t.look_up_in_a_table_split_both_ways()"
    done = subprocess.run([sys.executable, "-c", script],
                          env=environment, capture_output=True, text=True, check=True, timeout=600)
    found, hidden = done.stdout.splitlines()
    assert "rematerialization" not in done.stderr
    if jax.__version_info__ >= (0, 11):
        assert found == "()"
        assert "no longer logs" in hidden
    elif level == "1":
        assert found == "('%gather = f32[8,16,16]{2,1,0} gather',)"
        assert hidden == ""
    else:
        assert found == "()"
        assert hidden == "TF_CPP_MIN_LOG_LEVEL=3 hides the compiler's warnings; unset it"


def test_an_out_of_memory_error_keeps_the_compilers_figures():
    error = too_large("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
                      "Used 45.50G of 30.75G hbm. Exceeded hbm capacity by 14.75G.")
    assert str(error) == "needs 45.50GiB of 30.75GiB of HBM"
    assert error.needed == int(45.5 * 2**30)
    assert too_large("RESOURCE_EXHAUSTED: for another reason").needed == 0


def test_the_table_of_plans_is_made_from_their_json_files(root, planned, tmp_path):
    step, row = planned
    topology = find_topology("h100-2")
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(plan_record(step, topology, row, roofline(step, topology, 16, 0.4), 0.4)))
    script, rows = root / "benchmarks" / "plan_table.py", tmp_path / "rows.json"
    command = [sys.executable, str(script), str(path), f"--json={rows}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    head, _, line = done.stdout.splitlines()
    assert head.count("|") == line.count("|")
    assert line.startswith("| tiny (estimate) | 2 | 1x1x2x1 | 8 = 2 x 2 x 2 | ")
    (written,) = json.loads(rows.read_text())
    assert written["chips"] == "2"
    path.write_text("{}")
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 2
    assert "expected files that `python -m agent_jax.plan --json FILE` wrote" in refused.stderr
