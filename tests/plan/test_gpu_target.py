"""GPU descriptions for the compiler, and matrix products and traffic of its programs."""

import importlib.util

import pytest
from jax.experimental import topologies

from agent_jax.plan import devices, gpu_target, hlo
from agent_jax.plan.chips import CHIPS
from agent_jax.plan.topology import find_topology, known_topologies
from agent_jax.plan.traffic import matmul_flops, memory_bytes

GPUS = sorted({name.partition("-")[0] for name in known_topologies() if not find_topology(name).is_tpu})

# As XLA's compiler for GPUs writes them, cut: a product by cuBLAS, attention by cuDNN, and a buffer.
PROGRAM = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: bf16[64,32], w: bf16[32,48], q: bf16[2,4,10,16]) -> bf16[64,48] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[32,48]{1,0} parameter(1)
  %q = bf16[2,10,4,16]{3,2,1,0} parameter(2)
  %custom-call.1 = (bf16[64,48]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]},"epilogue":"DEFAULT"}}
  %dot_product_attention_fwd.0 = (bf16[2,4,10,16]{3,1,2,0}, f32[2,4,10]{2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config":{"fmha_scale":0.25}}
  %custom-call.2 = s8[1024]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %get-tuple-element.1 = bf16[64,48]{1,0} get-tuple-element(%custom-call.1), index=0
}
"""


def test_calls_of_cublas_are_products_and_workspace_is_no_traffic():
    module = hlo.parse(PROGRAM)
    assert matmul_flops(module) == 2 * 64 * 32 * 48
    product = 2 * (64 * 32 + 32 * 48 + 64 * 48)
    attention = 2 * (4 * 2 * 10 * 4 * 16) + 4 * 2 * 4 * 10  # of q, k, v and the output, and a total of each query
    assert memory_bytes(module) == product + attention


def test_a_loop_around_calls_of_cublas_needs_a_trip_count():
    text = """HloModule jit_step, is_scheduled=true

%body (state: (bf16[8,8], pred[])) -> (bf16[8,8], pred[]) {
  %state = (bf16[8,8]{1,0}, pred[]) parameter(0)
  %x = bf16[8,8]{1,0} get-tuple-element(%state), index=0
  %more = pred[] get-tuple-element(%state), index=1
  %custom-call = (bf16[8,8]{1,0}, s8[64]{0}) custom-call(%x, %x), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %y = bf16[8,8]{1,0} get-tuple-element(%custom-call), index=0
  ROOT %next = (bf16[8,8]{1,0}, pred[]) tuple(%y, %more)
}

%condition (state.1: (bf16[8,8], pred[])) -> pred[] {
  %state.1 = (bf16[8,8]{1,0}, pred[]) parameter(0)
  ROOT %more.1 = pred[] get-tuple-element(%state.1), index=1
}

ENTRY %main (begun: (bf16[8,8], pred[])) -> (bf16[8,8], pred[]) {
  %begun = (bf16[8,8]{1,0}, pred[]) parameter(0)
  ROOT %while = (bf16[8,8]{1,0}, pred[]) while(%begun), condition=%condition, body=%bodyTRIPS
}
"""
    known = text.replace("TRIPS", ', backend_config={"known_trip_count":{"n":"5"}}')
    assert matmul_flops(hlo.parse(known)) == 5 * 2 * 8**3
    with pytest.raises(ValueError, match="while"):
        matmul_flops(hlo.parse(text.replace("TRIPS", "")))


def test_an_asynchronous_fusion_counts_once_and_writes_what_it_updates():
    module = hlo.parse("""HloModule jit_step, is_scheduled=true

%fused (stack: f32[6,8,4], place: s32[], part: f32[8,4]) -> f32[6,8,4] {
  %stack = f32[6,8,4]{2,1,0} parameter(0)
  %place = s32[] parameter(1)
  %part = f32[8,4]{1,0} parameter(2)
  %bitcast = f32[1,8,4]{2,1,0} bitcast(%part)
  %zero = s32[] constant(0)
  ROOT %dynamic-update-slice = f32[6,8,4]{2,1,0} dynamic-update-slice(%stack, %bitcast, %place, %zero, %zero)
}

ENTRY %main (stack: f32[6,8,4], place: s32[], part: f32[8,4]) -> f32[6,8,4] {
  %stack.1 = f32[6,8,4]{2,1,0} parameter(0)
  %place.1 = s32[] parameter(1)
  %part.1 = f32[8,4]{1,0} parameter(2)
  %fusion-start = ((f32[6,8,4]{2,1,0}, s32[], f32[8,4]{1,0}), f32[6,8,4]{2,1,0}, u32[]) \
fusion-start(%stack.1, %place.1, %part.1), kind=kLoop, calls=%fused
  ROOT %fusion-done = f32[6,8,4]{2,1,0} fusion-done(%fusion-start)
}
""")
    assert memory_bytes(module) == 2 * 4 * 8 * 4 + 4  # the part and its place are read, the part is written


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_has_a_description_of_its_memory_and_generation(name):
    text, chip = gpu_target._target(CHIPS[name]), CHIPS[name]
    assert f"memory_bandwidth: {int(chip.hbm_bandwidth)}\n" in text
    assert f"device_memory_size: {int(chip.hbm_bytes)}\n" in text
    assert f"major: {8 if name == 'a100' else 9} " in text
    assert text.count("{") == text.count("}") == 4


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The values that a plan sets in jax's config, which are not set for other tests."""
    changed = {}
    monkeypatch.setattr(devices.jax.config, "update", lambda name, value: changed.update({name: value}))
    return changed


def test_without_the_compiler_a_plan_names_the_extra(monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not gpu_target.has_compiler()
    _, estimate = devices.prepare(find_topology("h100-16"))
    assert changed["jax_num_cpu_devices"] == 16
    assert '.venv-cuda/bin/pip install -e ".[cuda]"' in estimate


def test_a_compiler_that_refuses_the_description_leads_to_an_estimate_with_the_reason(
        monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]):
    def refuse(**_: object) -> None:
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(devices, "has_compiler", lambda: True)
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    _, estimate = devices.prepare(find_topology("h100-8"))
    assert changed["jax_num_cpu_devices"] == 8
    assert "takes no description of h100-8: topology not implemented for cuda" in estimate


def test_a_libtpu_that_does_not_answer_is_an_error(
        monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]):
    def refuse(**_: object) -> None:
        raise RuntimeError("another process has it")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(ValueError, match=r"--topology=v4-8: libtpu takes no description of v4-8: another process has"):
        devices.prepare(find_topology("v4-8"))
    assert "jax_num_cpu_devices" not in changed
