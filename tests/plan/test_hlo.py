"""Compiled programs, parsed from their text: loops in full, matrix products, collectives, memory traffic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jaxpr_counts import operations_of

from agent_jax.config import MeshConfig
from agent_jax.plan import hlo
from agent_jax.plan.collectives import by_kind, collectives
from agent_jax.plan.flops import total_flops
from agent_jax.plan.traffic import matmul_flops, memory_bytes
from agent_jax.runtime.sharding import make_mesh

LAYERS, ROWS, WIDTH = 6, 16, 32


def matrix(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def stack(x, kernels, unroll=1):
    return jax.lax.scan(lambda x, kernel: (jnp.sin(x @ kernel), None), x, kernels, unroll=unroll)[0]


def accumulated(xs, kernels, unroll=1):
    """Microbatches around layers, as in the train step, and their gradient."""
    return jax.grad(lambda k: jnp.sum(jax.lax.map(lambda x: stack(x, k, unroll), xs)))(kernels)


def compiled(function, *arguments):
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def on_mesh(unroll):
    """Microbatches around layers, kernels sharded over 4 devices, parts of the output summed and gathered."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices())

    def layer(x, kernel):
        part = jnp.sin(x[:, : WIDTH // 4] @ kernel)
        return jax.lax.psum(part, "fsdp") + jnp.max(jax.lax.all_gather(part, "fsdp"), axis=0), None

    def layers(xs, kernels):
        return jax.lax.map(lambda x: jax.lax.scan(layer, x, kernels, unroll=unroll)[0], xs)

    specs = PartitionSpec(None, "data"), PartitionSpec(None, "fsdp")
    function = jax.shard_map(layers, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    return compiled(function, matrix(3, ROWS, WIDTH), matrix(LAYERS, WIDTH, WIDTH))


def test_products_in_nested_loops_count_as_often_as_in_the_jaxpr():
    arguments = matrix(3, ROWS, WIDTH), matrix(LAYERS, WIDTH, WIDTH)
    expected = total_flops(operations_of(accumulated, *arguments))
    assert matmul_flops(compiled(accumulated, *arguments)) == expected
    assert expected == 3 * LAYERS * 3 * 2 * ROWS * WIDTH**2


def test_attributes_of_several_lines_do_not_end_a_computation():
    """As in splash attention, whose kernel has its blocks as JSON."""
    module = hlo.parse("""HloModule jit_f

ENTRY %main (x: f32[4]) -> (f32[4]) {
  %x = f32[4]{0} parameter(0)
  %kernel = f32[4]{0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
  "block_q": "512"
}}, metadata={op_name="splash"}
  ROOT %out = (f32[4]{0}) tuple(%kernel)
}
""")
    assert list(module.entry.instructions) == ["x", "kernel", "out"]
    assert module.entry.root.operands == ("kernel",)
    assert module.entry.instructions["kernel"].scope == "splash"


@pytest.mark.parametrize("unroll", [1, LAYERS])
def test_collectives_in_nested_loops_count_as_often_as_those_of_unrolled_layers(unroll):
    reduced, gathered = (({total.kind: total for total in by_kind(collectives(on_mesh(unroll), 8))})[kind]
                         for kind in ("all-reduce", "all-gather"))
    assert (reduced.count, reduced.bytes) == (3 * LAYERS, 3 * LAYERS * 4 * (ROWS // 2) * WIDTH)
    assert reduced.sent_bytes == pytest.approx(2 * 0.75 * reduced.bytes)
    assert (gathered.count, gathered.bytes) == (3 * LAYERS, 4 * reduced.bytes)
    assert gathered.sent_bytes == pytest.approx(0.75 * gathered.bytes)


def test_products_are_those_of_one_device_of_the_mesh():
    assert matmul_flops(on_mesh(1)) == 3 * LAYERS * 2 * (ROWS // 2) * (WIDTH // 4) * WIDTH


def test_a_scan_reads_each_layer_once_not_all_layers_every_time():
    module = compiled(stack, matrix(ROWS, WIDTH), matrix(LAYERS, WIDTH, WIDTH))
    kernels = 4 * LAYERS * WIDTH**2
    assert kernels < memory_bytes(module) < LAYERS * kernels


TPU_LOOP = """
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[256,64]) -> bf16[128,64] {
  %input = bf16[256,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[256,64]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups={{0,1},{2,3}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %kept = bf16[128,64]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={128,64}
}

%convolution.2 (x: bf16[8,128,64,1], k: bf16[3,64,64,1]) -> bf16[8,128,3,64] {
  %x = bf16[8,128,64,1]{2,1,0,3:T(8,128)(2,1)S(3)} parameter(0)
  %k = bf16[3,64,64,1]{2,1,0,3:T(8,128)(2,1)} parameter(1)
  ROOT %qkv = bf16[8,128,3,64]{3,1,2,0:T(8,128)(2,1)} convolution(%x, %k), window={WINDOW}, dim_labels=0bf1_1oi0->0b1f
}

%body (state: (s32[], bf16[256,64])) -> (s32[], bf16[256,64]) {
  %state = (s32[]{:T(128)}, bf16[256,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %y = bf16[256,64]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %scattered = bf16[128,64]{1,0:T(8,128)(2,1)} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %gathered = bf16[256,64]{1,0:T(8,128)(2,1)S(3)} all-gather(%scattered), GROUPS, dimensions={0}
  ROOT %out = (s32[]{:T(128)}, bf16[256,64]{1,0:T(8,128)(2,1)}) tuple(%next, %gathered)
}

%condition (state.1: (s32[], bf16[256,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %state.1 = (s32[]{:T(128)}, bf16[256,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %more = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.1: bf16[256,64]) -> bf16[256,64] {
  %x.1 = bf16[256,64]{1,0:T(8,128)(2,1)} parameter(0)
  %first = s32[]{:T(128)} constant(2)
  %copied = s32[]{:T(128)} copy(%first)
  %start = (s32[]{:T(128)}, bf16[256,64]{1,0:T(8,128)(2,1)}) tuple(%copied, %x.1)
  %loop = (s32[]{:T(128)}, bf16[256,64]{1,0:T(8,128)(2,1)}) while(%start), condition=%condition, body=%body
  ROOT %result = bf16[256,64]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
""".replace("WINDOW", "size=1x3 pad=0_0x2_2 rhs_reversal=0x1").replace(
    "GROUPS", "replica_groups=mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}")


def test_a_loop_without_a_written_trip_count_is_counted_from_its_constants():
    module = hlo.parse(TPU_LOOP)
    assert module.trips(module.entry, module.entry.instructions["loop"]) == 12 - 2
    endless = hlo.parse(TPU_LOOP.replace("%limit = s32[]{:T(128)} constant(12)",
                                         "%limit = s32[]{:T(128)} get-tuple-element(%state.1), index=0"))
    with pytest.raises(ValueError, match=r"HLO loop 'loop' .*: its trips could not be read: from 2 to None by 1"):
        list(endless.walk())


def test_a_data_dependent_loop_is_refused_only_around_products_and_collectives():
    def halve(x):
        return jax.lax.while_loop(lambda x: jnp.max(x) > 1.0, lambda x: x / 2.0, x)

    assert matmul_flops(compiled(halve, matrix(4, 4))) == 0
    with pytest.raises(ValueError, match="its trips could not be read"):
        matmul_flops(compiled(lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 1.0, lambda x: x @ x, x), matrix(8, 8)))


def test_a_tpus_fused_all_reduce_and_slice_is_a_reduce_scatter():
    totals = {total.kind: total for total in by_kind(collectives(hlo.parse(TPU_LOOP), 4))}
    assert set(totals) == {"all-gather", "reduce-scatter"}
    payload = 10 * 256 * 64 * 2
    assert (totals["reduce-scatter"].count, totals["reduce-scatter"].bytes) == (10, payload)
    assert totals["all-gather"].bytes == payload
    assert totals["all-gather"].sent_bytes == payload / 2


def test_arrays_in_on_chip_memory_are_no_traffic():
    # A trip: the fusion reads 256 x 64 and writes 128 x 64, the gather reads these and writes to on-chip memory.
    assert memory_bytes(hlo.parse(TPU_LOOP)) == pytest.approx(10 * (256 + 128 + 128) * 64 * 2, rel=1e-3)  # and scalars


def test_padding_of_a_convolution_does_not_count():
    computation = hlo.parse(TPU_LOOP).computations["convolution.2"]
    module = hlo.Module({"convolution.2": computation}, computation)
    # Of three windows each result meets one kernel: q, k and v of a fused projection, 64 x 64 each.
    assert matmul_flops(module) == 2 * 8 * 128 * 3 * 64 * 64


def test_a_text_without_an_entry_computation_is_refused():
    with pytest.raises(ValueError, match="found no line 'ENTRY"):
        hlo.parse("HloModule nothing")
