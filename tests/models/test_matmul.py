"""The product of activations and a kernel on any platform; that for CPUs has tests of its own (cpu/test_matmul.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_rows import TINY, mixed_batch, quick_jit, random_params

from agent_jax.models.agent import Agent
from agent_jax.models.compute import Compute
from agent_jax.models.matmul import matmul


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("features", [(64,), (3, 64)])
def test_a_product_and_its_gradients_in_the_dtype_of_the_parameters(dtype, features):
    rng = np.random.default_rng(0)
    x, kernel, g = (rng.standard_normal(shape, np.float32) for shape in ((384, 80), (80, *features), (384, *features)))
    x, g = jnp.asarray(x, dtype), jnp.asarray(g, dtype)

    @jax.jit
    def found(x, kernel, g):
        made, pull = jax.vjp(lambda x, kernel: matmul(x, kernel, dtype), x, kernel)
        return made, *pull(g)

    @jax.jit
    def expected(x, kernel, g):
        product = lambda x, kernel: jnp.tensordot(x, kernel, 1, precision="highest")  # noqa: E731
        made, pull = jax.vjp(product, x.astype(jnp.float32), kernel.astype(dtype).astype(jnp.float32))
        return made, *pull(g.astype(jnp.float32))

    made = found(x, kernel, g)
    assert [part.dtype for part in made] == [jnp.dtype(dtype), jnp.dtype(dtype), jnp.float32]
    for index, (ours, exact) in enumerate(zip(made, expected(x, kernel, g), strict=True)):
        tolerance = 2**-8 if dtype == "bfloat16" and index < 2 else 1e-5
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=tolerance, atol=1e-3)


def test_a_model_in_bfloat16_has_gradients_with_every_kernel_that_a_cpu_runs():
    batch, params = mixed_batch(17), random_params(TINY)
    keys_B = jax.random.split(jax.random.key(0), len(batch.token_BS))
    gradients = {}
    for attention in ("xla", "cpu"):
        agent = Agent(TINY, Compute(jnp.bfloat16, attention=attention))

        def loss(params, batch, agent=agent):
            output = agent.apply({"params": params}, batch, mask_keys_B=keys_B)
            return jnp.sum(jnp.where(jnp.isfinite(output.logits_BTK), output.logits_BTK, 0)) + jnp.sum(
                output.predicted_BFIX)

        gradients[attention] = quick_jit(jax.grad(loss))(params, batch)
    for one, other in zip(*map(jax.tree.leaves, gradients.values()), strict=True):
        assert one.dtype == other.dtype == jnp.float32
        scale = float(np.abs(one).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=0.05 * scale + 1e-3)
