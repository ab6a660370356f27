"""An accelerator's collectives and memory traffic, estimated from the CPU compiler's program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from agent_jax.config import MeshConfig
from agent_jax.plan import hlo
from agent_jax.plan.collectives import by_kind, collectives
from agent_jax.plan.cpu_estimate import OPTIMIZER_PASSES, estimated_collectives, estimated_memory_bytes
from agent_jax.runtime.sharding import make_mesh

ROWS, WIDTH = 32, 64


def gradient_of_a_kernel(dtype, *, split):
    """One layer, rows sharded over 8 devices, the kernel too or replicated; its gradient is summed over the devices."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices())
    place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    kernel = place("fsdp") if split else place()

    def gradient(kernel, x):
        loss = lambda kernel: jnp.sum(jnp.sin(x.astype(dtype) @ kernel.astype(dtype)).astype(jnp.float32))  # noqa: E731
        return jax.grad(loss)(kernel)

    arguments = (jax.ShapeDtypeStruct((WIDTH, WIDTH), np.float32, sharding=kernel),
                 jax.ShapeDtypeStruct((ROWS, WIDTH), np.float32, sharding=place("fsdp")))
    return hlo.parse(jax.jit(gradient, out_shardings=kernel).lower(*arguments).compile().as_text())


def totals(found):
    return {total.kind: total.bytes for total in by_kind(found)}


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 4), (jnp.bfloat16, 2)])
def test_a_sharded_kernel_is_gathered_and_its_gradient_scattered_in_the_dtype_of_the_products(dtype, size):
    module = gradient_of_a_kernel(dtype, split=True)
    payload = size * WIDTH**2
    assert totals(estimated_collectives(module, 8)) == {"all-gather": payload, "reduce-scatter": payload}


def test_the_cpu_compiler_itself_sends_float32_and_has_an_all_reduce():
    module = gradient_of_a_kernel(jnp.bfloat16, split=True)
    assert totals(collectives(module, 8)) == {"all-gather": 4 * WIDTH**2, "all-reduce": 4 * WIDTH**2}


def test_the_gradient_of_a_replicated_kernel_stays_an_all_reduce():
    module = gradient_of_a_kernel(jnp.bfloat16, split=False)
    assert totals(estimated_collectives(module, 8)) == {"all-reduce": 2 * WIDTH**2}


def test_memory_traffic_is_products_once_and_the_optimizers_arrays():
    module = gradient_of_a_kernel(jnp.bfloat16, split=False)
    rows = ROWS // 8
    product = 2 * rows * WIDTH + WIDTH**2  # forward; of the gradient too: the same three sizes
    assert estimated_memory_bytes(module, 2, 1_000) == 2 * 2 * product + OPTIMIZER_PASSES * 1_000
