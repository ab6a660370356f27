"""The stack of blocks: the scan is a plain loop, and remat changes memory, not gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agent_jax.models.attention import causal_segment_mask
from agent_jax.models.compute import Compute
from agent_jax.models.transformer import BlockConfig, Collect, Dense, TransformerBlock, layers_apart, run_blocks

CONFIG = BlockConfig(width=16, heads=2, mlp_width=24, activation="gelu", layer_norm_eps=1e-5, dropout=0.3)
DEPTH = 3


class Stack(nn.Module):
    """`run_blocks` needs a calling module."""

    compute: Compute = Compute()
    collect: Collect = "hidden"

    @nn.compact
    def __call__(self, x, mask, keys):
        return run_blocks(CONFIG, self.compute, DEPTH, x, mask, keys, collect=self.collect)


def inputs():
    x = np.random.default_rng(0).standard_normal((2, 5, CONFIG.width), np.float32)
    mask = causal_segment_mask(jnp.asarray([[1, 1, 2, 2, 0], [1, 1, 1, 1, 1]]))
    return x, mask, jax.random.split(jax.random.key(1), 2)


def random_params():
    shapes = jax.eval_shape(Stack().init, jax.random.key(0), *inputs())["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: np.asarray(0.3 * rng.standard_normal(leaf.shape), np.float32), shapes)


def test_layers_apart_compute_what_the_scan_computes():
    x, mask, keys = inputs()
    params, apart = random_params(), Stack(Compute(scan=None))
    expected = jax.jit(Stack().apply)({"params": params}, x, mask, keys)
    found = jax.jit(apart.apply)({"params": layers_apart(params)}, x, mask, keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)
    drawn = jax.eval_shape(apart.init, jax.random.key(0), x, mask, keys)["params"]
    assert jax.tree.map(jnp.shape, layers_apart(params)) == jax.tree.map(jnp.shape, drawn)


@pytest.mark.parametrize("dropout", [False, True])
def test_the_scan_over_layers_equals_a_plain_loop(dropout):
    x, mask, keys = inputs()
    params, keys = random_params(), keys if dropout else None
    out, states = jax.jit(Stack().apply)({"params": params}, x, mask, keys)
    one = TransformerBlock(CONFIG)
    block = jax.jit(lambda params, x, layer: one.apply({"params": params}, x, layer, mask, keys)[0])
    expected = []
    for layer in range(DEPTH):
        mine = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        x = block(mine, x, layer)
        expected.append(x)
    np.testing.assert_allclose(states, jnp.stack(expected), atol=1e-5)
    np.testing.assert_array_equal(out, states[-1])


def test_dropout_draws_a_mask_of_its_own_for_every_row_layer_and_place_and_none_without_a_key():
    x, mask, keys = inputs()
    params = jax.tree.map(np.zeros_like, random_params())
    params["blocks"]["attention"]["out"]["bias"][:] = 1  # so that what a block adds shows both of its masks
    params["blocks"]["mlp"]["down"]["bias"][:] = 100
    apply = jax.jit(Stack().apply)

    def added(keys):
        _, states = apply({"params": params}, x, mask, keys)
        return np.diff(np.concatenate([x[None], states]), axis=0)

    rate = CONFIG.dropout
    np.testing.assert_allclose(added(None), 101, atol=1e-3)
    both = added(keys)
    places = [both > 50, (both + 0.1) % (100 / (1 - rate)) > 0.7]  # after the MLP, after the attention
    np.testing.assert_allclose(both, (100 * places[0] + places[1]) / (1 - rate), atol=1e-3)
    masks = [place[layer, row] for place in places for layer in range(DEPTH) for row in range(2)]
    assert all((one != other).any() for i, one in enumerate(masks) for other in masks[:i])
    assert abs(np.mean(masks) - (1 - rate)) < 0.07
    np.testing.assert_array_equal(added(keys), both)
    np.testing.assert_allclose(added(keys[::-1]), both[:, ::-1], atol=1e-3)  # a mask follows its row's key


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_gives_the_gradients_of_the_plain_stack(remat):
    x, mask, keys = inputs()
    params = random_params()

    def gradients(compute):
        def loss(params, x):
            return jnp.sum(jnp.sin(Stack(compute).apply({"params": params}, x, mask, keys)[0]))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)

    plain, recomputed = gradients(Compute()), gradients(Compute(remat=remat))
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, recomputed)


def test_the_gradients_of_a_layer_in_bfloat16_are_summed_and_returned_in_float32():
    rows, dense = 4096, Dense((3,), Compute(jnp.bfloat16))
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.uniform(0.5, 1.5, (rows, width)), jnp.bfloat16) for width in (2, 3))
    params = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    out, pull = jax.vjp(lambda params: dense.apply({"params": params}, x), params)
    [found] = pull(g)
    assert out.dtype == jnp.bfloat16
    exact_x, exact_g = (np.asarray(value, np.float64) for value in (x, g))
    np.testing.assert_allclose(found["bias"], exact_g.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["kernel"], exact_x.T @ exact_g, rtol=1e-5)
