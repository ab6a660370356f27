"""Operations counted on the jaxpr: every iteration of loops, recomputation, every device."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from jaxpr_counts import flops_by_group, operations_of

from agent_jax.batch import Batch, RowSize
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
from agent_jax.plan.flops import operations, total_flops
from agent_jax.runtime.sharding import make_mesh
from agent_jax.train.state import abstract_state
from agent_jax.train.step import make_train_step

SIZES = {"width": 64, "depth": 3, "heads": 4, "mlp_width": 256}
ROW = RowSize(frames=2, image_size=16, slots=48, targets=8)


def make_config(*, unroll=1, remat="none", accumulation=1):
    model = ModelConfig(vision=VisionConfig(image_size=16, patch_size=4, **SIZES), mae=MaeConfig(**SIZES), remat=remat,
                        language=LanguageConfig(positions=48, vocabulary_size=250, dropout=0.0, **SIZES), unroll=unroll)
    return Config(model=model, train=TrainConfig(steps=10, batch_size=4, accumulation=accumulation),
                  data=DataConfig(domains={"one": DomainConfig()}))


def traced_step(config):
    mesh, optimizer = make_mesh(MeshConfig(), jax.devices()[:1]), optax.sgd(1.0)
    step = make_train_step(config, mesh, optimizer)
    return step.trace(abstract_state(config, mesh, optimizer), Batch.spec(ROW, config.train.batch_size))


def step_flops(**changes):
    return total_flops(operations(traced_step(make_config(**changes)).jaxpr))


def matrix(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_a_matrix_product_is_a_multiplication_and_an_addition_of_each_pair():
    (found,) = operations_of(lambda a, b: a @ b, matrix(3, 5), matrix(5, 7))
    assert (found.primitive, found.group, found.times, found.flops) == ("dot_general", "matmul", 1, 2 * 3 * 5 * 7)
    assert (found.shapes, found.dtype) == (((3, 5), (5, 7)), "float32")
    batched = operations_of(lambda a, b: jnp.einsum("BNSH,BNZH->BNSZ", a, b), matrix(2, 3, 4, 5), matrix(2, 3, 6, 5))
    assert total_flops(batched) == 2 * (2 * 3) * 4 * 6 * 5


def test_a_convolution_counts_the_kernel_of_each_result():
    strided = lambda image, kernel: jax.lax.conv_general_dilated(  # noqa: E731
        image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    found = operations_of(strided, matrix(2, 16, 16, 3), matrix(4, 4, 3, 8))
    assert flops_by_group(found) == {"convolution": 2 * (2 * 4 * 4 * 8) * (4 * 4 * 3)}


def test_a_scan_counts_every_iteration_also_inside_another_scan():
    def layers(x, kernels):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

    def microbatches(xs, kernels):
        return jax.lax.map(lambda x: layers(x, kernels), xs)

    one = 2 * 4 * 8 * 8
    (found,) = operations_of(layers, matrix(4, 8), matrix(6, 8, 8))
    assert (found.times, found.flops) == (6, 6 * one)
    assert total_flops(operations_of(microbatches, matrix(5, 4, 8), matrix(6, 8, 8))) == 5 * 6 * one


def test_gradients_of_a_chain_of_products_cost_twice_the_forward_pass():
    def loss(kernels, x):
        return jnp.sum(jax.lax.scan(lambda x, kernel: (jnp.sin(x @ kernel), None), x, kernels)[0])

    forward = total_flops(operations_of(loss, matrix(6, 8, 8), matrix(4, 8)))
    # The first layer's input has no gradient, but a scan's body is the same in every pass.
    assert total_flops(operations_of(jax.grad(loss), matrix(6, 8, 8), matrix(4, 8))) == 3 * forward


def test_recomputed_operations_count_again():
    def loss(kernels, x, policy):
        block = jax.checkpoint(lambda x, kernel: (jnp.sin(jnp.sin(x @ kernel) @ kernel), None), prevent_cse=False,
                               policy=policy)
        return jnp.sum(jax.lax.scan(block, x, kernels)[0])

    flops = {name: total_flops(operations_of(jax.grad(lambda k, x, p=policy: loss(k, x, p)), matrix(6, 8, 8),
                                             matrix(4, 8)))
             for name, policy in {"all": jax.checkpoint_policies.everything_saveable, "none": None}.items()}
    product = 2 * 4 * 8 * 8
    # Of two products a layer both are saved, or both recomputed: the last sine's derivative needs the second.
    assert flops["all"] == 6 * 2 * 3 * product
    assert flops["none"] == 6 * 2 * 4 * product


def test_unused_results_are_not_counted():
    def wasteful(a, b):
        unused = a @ b
        del unused
        return a + 1.0

    assert operations_of(wasteful, matrix(4, 4), matrix(4, 4)) == []


def test_a_condition_counts_as_its_most_expensive_branch():
    branching = lambda x, k: jax.lax.cond(jnp.sum(x) > 0, lambda: x @ k, lambda: (x @ k) @ k)  # noqa: E731
    assert total_flops(operations_of(branching, matrix(4, 4), matrix(4, 4))) == 2 * 2 * 4**3


def test_a_loop_of_unknown_length_around_a_product_is_refused():
    def loop(x, k):
        return jax.lax.while_loop(lambda x: jnp.sum(x) > 0, lambda x: x @ k, x)

    with pytest.raises(ValueError, match="while loop.* dot_general"):
        operations_of(loop, matrix(4, 4), matrix(4, 4))
    harmless = lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) > 0, lambda x: x - 1.0, x)  # noqa: E731
    assert operations_of(harmless, matrix(4, 4)) == []


def test_a_shard_map_counts_on_every_device():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2), jax.devices())
    product = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec()),
                            out_specs=PartitionSpec("data"), check_vma=False)
    # Rows are split over four devices; the two of each fsdp group do the same.
    assert total_flops(operations_of(product, matrix(8, 4), matrix(4, 4))) == 2 * (2 * 8 * 4 * 4)


def test_a_pallas_kernel_counts_for_each_point_of_its_grid_or_by_its_cost_estimate():
    pl = pytest.importorskip("jax.experimental.pallas")

    def kernel(a_ref, b_ref, out_ref):
        out_ref[...] = jnp.dot(a_ref[...], b_ref[...])

    def product(a, b, **options):
        rows, whole = pl.BlockSpec((8, 16), lambda i: (i, 0)), pl.BlockSpec((16, 16), lambda i: (0, 0))
        return pl.pallas_call(kernel, grid=(4,), out_shape=matrix(32, 16), out_specs=rows, in_specs=[rows, whole],
                              **options)(a, b)

    arguments = matrix(32, 16), matrix(16, 16)
    assert flops_by_group(operations_of(product, *arguments)) == {"kernel": 2 * 32 * 16 * 16}
    estimate = pl.CostEstimate(flops=7, transcendentals=0, bytes_accessed=0)
    assert total_flops(operations_of(lambda a, b: product(a, b, cost_estimate=estimate), *arguments)) == 7


def test_elementwise_operations_are_counted_when_asked_for():
    found = operations_of(lambda x: jnp.sum(jnp.exp(x) * x), matrix(4, 8), elementwise=True)
    assert flops_by_group(found) == {"elementwise": 3 * 4 * 8}  # exp, mul, and the additions of the sum


def test_the_scopes_are_the_modules_of_the_model():
    scopes = {operation.scope for operation in operations(traced_step(make_config()).jaxpr)}
    for part in ("vision/blocks/mlp/up", "language/blocks/attention/qkv", "mae/prediction"):
        assert any(part in scope and scope.count("transpose") for scope in scopes), part
        assert any(part in scope and not scope.count("transpose") for scope in scopes), part


@pytest.mark.parametrize("remat", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dots", "full"))])
def test_a_step_costs_the_same_scanned_unrolled_and_accumulated(remat):
    flops = step_flops(remat=remat)
    assert step_flops(remat=remat, unroll=SIZES["depth"]) == flops
    assert step_flops(remat=remat, accumulation=4) == flops


def test_full_rematerialisation_adds_the_blocks_once_more():
    none, full = step_flops(), step_flops(remat="full")
    forward = sum(operation.flops for operation in operations(traced_step(make_config()).jaxpr)
                  if "transpose" not in operation.scope and "/blocks" in operation.scope)
    assert full - none <= forward
    assert full - none > 0.6 * forward  # less the last product of each block, a third here, which no derivative needs
    assert step_flops(remat="dots") < full


@pytest.mark.slow
def test_the_count_equals_the_compilers_of_the_unrolled_step():
    traced = traced_step(make_config(unroll=SIZES["depth"]))
    ours = flops_by_group(operations(traced.jaxpr, elementwise=True))
    theirs = traced.lower().compile().cost_analysis()["flops"]
    # The compiler folds some of the elementwise operations, and adds others.
    assert ours["matmul"] < theirs
    assert math.isclose(sum(ours.values()), theirs, rel_tol=0.05)


def test_the_compiler_counts_a_scanned_step_as_if_it_had_one_layer():
    scanned = traced_step(make_config())
    theirs = scanned.lower().compile().cost_analysis()["flops"]
    assert theirs < 0.6 * total_flops(operations(scanned.jaxpr))


def test_operations_are_plain_records():
    (found,) = operations_of(lambda a: a @ a, matrix(2, 2))
    assert dataclasses.asdict(found)["flops"] == 16
