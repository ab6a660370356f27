"""The optimizer, against plain NumPy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agent_jax.config import LanguageConfig, ModelConfig, OptimizerConfig, VisionConfig
from agent_jax.models.agent import init_params
from agent_jax.runtime.sharding import path_name
from agent_jax.train.optimizer import (
    decay_mask,
    learning_rate_schedule,
    make_optimizer,
    start_average,
    trained_mask,
    update_average,
)
from agent_jax.train.state import TrainState

CONFIG = OptimizerConfig(learning_rate=0.1, end_learning_rate=0.01, warmup=0.2, weight_decay=0.5, clip_norm=0.0)


def tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    return {"vision": {"up": {"kernel": draw(3, 2), "bias": draw(2)}}, "language": {"token_embedding": draw(4, 2)}}


def run(config, steps, params, gradients):
    """Parameters after each update, and the last state of the optimizer."""
    optimizer = make_optimizer(config, steps, params)
    update, state, history = jax.jit(optimizer.update), optimizer.init(params), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        history.append(params)
    return history, state


def test_the_rate_rises_from_the_first_update_and_falls_to_the_end_rate_at_the_last():
    rate = learning_rate_schedule(CONFIG, 100)
    values = np.asarray([rate(count) for count in range(100)])
    np.testing.assert_allclose(values[:20], 0.1 * np.arange(1, 21) / 20, rtol=1e-6)
    falling = 0.01 + 0.09 * 0.5 * (1 + np.cos(math.pi * np.arange(1, 81) / 80))
    np.testing.assert_allclose(values[20:], falling, rtol=1e-5)
    assert values[-1] == pytest.approx(0.01)
    assert float(rate(1000)) == pytest.approx(0.01)


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 1), (0.0, 10), (0.99, 3), (0.02, 10)])
def test_the_rate_is_positive_and_finite_in_the_shortest_runs(warmup, steps):
    rate = learning_rate_schedule(dataclasses.replace(CONFIG, warmup=warmup), steps)
    assert all(0.0099 < float(rate(count)) < 0.1001 for count in range(steps))


def test_updates_equal_adamw_computed_by_hand():
    with jax.enable_x64(True):  # in f32, 1 - b2^t alone is wrong by 1e-5
        params, gradients = tree(0, jnp.float64), [tree(seed, jnp.float64) for seed in (1, 2, 3)]
        history, _ = run(CONFIG, 10, params, gradients)
        rates = [float(learning_rate_schedule(CONFIG, 10)(jnp.asarray(t, jnp.int32))) for t in range(3)]
    for part, name, decay in (("up", "kernel", 0.5), ("up", "bias", 0.0)):
        p = np.asarray(params["vision"][part][name])
        m = v = np.zeros_like(p)
        for t, gradient in enumerate(gradients):
            g = np.asarray(gradient["vision"][part][name])
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            step = (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
            p = p - rates[t] * (step + decay * p)
            np.testing.assert_allclose(history[t]["vision"][part][name], p, rtol=1e-9)


def test_muon_moves_each_matrix_of_a_stack_by_its_own_orthogonal_step_and_leaves_the_rest_to_adamw():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    config = dataclasses.replace(CONFIG, name="muon", weight_decay=0.0)

    def moved(params, gradients, config):
        history, _ = run(config, 10, params, [gradients])
        return jax.tree.map(lambda before, after: after - before, params, history[0])

    shapes = {"qkv": (2, 8, 3, 6), "up": (2, 8, 16), "connector": (8, 4)}
    params, gradients = ({"blocks": {name: {"kernel": draw(*shape), "bias": draw(5)} for name, shape in shapes.items()},
                          "token_embedding": draw(7, 8)} for _ in range(2))
    by_muon, by_adam = (moved(params, gradients, one) for one in (config, dataclasses.replace(config, name="adamw")))
    np.testing.assert_allclose(by_muon["token_embedding"], by_adam["token_embedding"], rtol=1e-6)
    np.testing.assert_allclose(by_muon["blocks"]["up"]["bias"], by_adam["blocks"]["up"]["bias"], rtol=1e-6)
    rate = float(learning_rate_schedule(config, 10)(0))
    for name, matrices in (("qkv", [(slice(None), 0), (slice(None), 2)]), ("up", [(...,)]), ("connector", None)):
        update, gradient = by_muon["blocks"][name]["kernel"], gradients["blocks"][name]["kernel"]
        for layer in range(2) if matrices else [None]:
            for at in matrices or [(...,)]:
                one, of = ((array if layer is None else array[layer])[at] for array in (update, gradient))
                alone = moved({"kernel": jnp.zeros_like(of)}, {"kernel": of}, config)["kernel"]
                np.testing.assert_allclose(one, alone, rtol=1e-4, atol=1e-6)
                singular = np.linalg.svd(np.asarray(one), compute_uv=False) / (0.2 * math.sqrt(max(one.shape)) * rate)
                assert 0.6 < singular.min() <= singular.max() < 1.3  # as the iterations leave them
                assert np.vdot(one, of) < 0


def test_only_kernels_and_the_token_table_decay():
    config = ModelConfig(vision=VisionConfig(positions="clip", temporal_attention=True),
                         language=LanguageConfig(vocabulary_size=51_578))
    mask = decay_mask(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    ends = {True: set(), False: set()}
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        ends[decays].add(path_name(path).split("/")[-1])
    assert ends[True] == {"kernel", "token_embedding"}
    assert ends[False] == {"bias", "scale", "class_embedding", "mask_token", "position_embedding"}


def test_clipping_scales_the_whole_gradient_to_the_norm():
    # Adam is blind to scale, except through eps: two steps of very different norm tell whether they were clipped.
    clipped = dataclasses.replace(CONFIG, clip_norm=1.0, weight_decay=0.0)
    norm = lambda gradient: math.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)))  # noqa: E731
    large = jax.tree.map(lambda leaf: 1e3 * leaf, tree(1))
    unit = jax.tree.map(lambda leaf: leaf / norm(large), large)
    small = jax.tree.map(lambda leaf: 0.5 * leaf / norm(tree(2)), tree(2))
    left, _ = run(clipped, 10, tree(0), [large, small])
    right, _ = run(clipped, 10, tree(0), [unit, small])
    off, _ = run(dataclasses.replace(clipped, clip_norm=0.0), 10, tree(0), [large, small])
    for a, b, c in zip(*(jax.tree.leaves(history[-1]) for history in (left, right, off)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert not np.allclose(a, c, rtol=1e-3)


def test_frozen_parameters_stay_bitwise_and_have_no_moments():
    config = dataclasses.replace(CONFIG, freeze=("vision/.*",), ema=0.9, clip_norm=1.0)
    history, state = run(config, 10, tree(0), [tree(1), tree(2)])
    for before, after in zip(jax.tree.leaves(tree(0)["vision"]), jax.tree.leaves(history[-1]["vision"]), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(tree(0)["language"]["token_embedding"], history[-1]["language"]["token_embedding"])
    held = [path_name(path) for path, leaf in jax.tree_util.tree_leaves_with_path(state) if leaf.ndim]
    assert len(held) == 2  # moments
    assert all(path.endswith("language/token_embedding") for path in held)


def test_what_is_frozen_does_not_count_in_the_clipped_norm():
    config = dataclasses.replace(CONFIG, freeze=("vision/.*",), clip_norm=1.0)
    loud = tree(1) | {"vision": jax.tree.map(lambda leaf: 1e6 * leaf, tree(1)["vision"])}
    quiet, _ = run(config, 10, tree(0), [tree(1), tree(2)])
    other, _ = run(config, 10, tree(0), [loud, tree(2)])
    np.testing.assert_array_equal(quiet[-1]["language"]["token_embedding"], other[-1]["language"]["token_embedding"])


@pytest.mark.parametrize(("freeze", "message"), [
    (("visoin/.*",), r"config.optimizer.freeze\[0\]='visoin/.\*' matches no parameter path.*near it: vision"),
    (("vision/.*", "token_embedding"), r"freeze\[1\]='token_embedding' matches no.*language/token_embedding"),
    (("vision", ), r"matches no parameter path.*chosen by 'part/\.\*'"),
    (("vision/(",), r"freeze\[0\]='vision/\(' is not a regular expression"),
    ((".*",), r"freezes every parameter"),
])
def test_a_pattern_that_cannot_be_meant_is_refused(freeze, message):
    with pytest.raises(ValueError, match=message):
        trained_mask(tree(0), freeze)


def test_a_factor_scales_the_rate_and_the_decay_of_the_parameters_of_its_pattern():
    gradients = [tree(1), tree(2)]
    factors = (("vision/.*/bias", 3.0), ("vision/.*", 0.1))  # the first one that matches decides
    plain, plain_state = run(CONFIG, 10, tree(0), gradients[:1])
    scaled, state = run(dataclasses.replace(CONFIG, learning_rate_factors=factors), 10, tree(0), gradients[:1])
    start = tree(0)
    for path, factor in ((("vision", "up", "kernel"), 0.1), (("vision", "up", "bias"), 3.0),
                         (("language", "token_embedding"), 1.0)):
        before, expected, got = (functools.reduce(lambda node, name: node[name], path, found)
                                 for found in (start, plain[0], scaled[0]))
        np.testing.assert_allclose(got - before, factor * (expected - before), rtol=1e-5, atol=1e-8)
    assert jax.tree.leaves(state)[0].shape == jax.tree.leaves(plain_state)[0].shape
    assert [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)] == [
        path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(plain_state)]
    frozen = dataclasses.replace(CONFIG, learning_rate_factors=factors, freeze=("language/.*",), clip_norm=1.0)
    assert len(run(frozen, 10, tree(0), gradients)[0]) == 2


@pytest.mark.parametrize(("factors", "message"), [
    ((("visoin/.*", 0.1),), r"learning_rate_factors\[0\]='visoin/.\*' matches no parameter path.*near it: vision"),
    ((("vision/.*", 0.1), ("(", 2.0)), r"learning_rate_factors\[1\]='\(' is not a regular expression"),
])
def test_a_factor_for_no_parameter_is_refused(factors, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(dataclasses.replace(CONFIG, learning_rate_factors=factors), 10, tree(0))


def averages(history, decay, freeze=()):
    """The average after each of the parameters in `history`, of which the first is what a run starts with."""
    average = start_average(history[0], freeze)
    for count, params in enumerate(history[1:], start=1):
        average = update_average(average, params, decay, jnp.int32(count))
        yield average


def test_the_average_is_the_bias_corrected_exponential_mean_of_the_parameters():
    history = [tree(seed) for seed in range(4)]
    *_, average = averages(history, 0.9)
    weights = 0.9 ** np.arange(2, -1, -1)
    for got, *updated in zip(*map(jax.tree.leaves, (average, *history[1:])), strict=True):
        expected = sum(w * np.asarray(p, np.float64) for w, p in zip(weights, updated, strict=True)) / weights.sum()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_of_a_frozen_parameter_no_average_is_held_and_the_last_one_acts():
    history = [tree(seed) for seed in range(3)]
    *_, average = averages(history, 0.9, ("vision/.*",))
    assert len(jax.tree.leaves(average)) == 1
    acting = TrainState(0, history[-1], None, average).acting_params
    assert acting["vision"]["up"]["kernel"] is history[-1]["vision"]["up"]["kernel"]
    assert not np.array_equal(acting["language"]["token_embedding"], history[-1]["language"]["token_embedding"])


def test_without_averaging_the_last_parameters_act():
    params = tree(0)
    assert TrainState(0, params, None).acting_params is params
