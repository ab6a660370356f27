"""One step: the same on any mesh and with any accumulation; what it changes, keeps, counts and donates."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agent_jax.batch import Batch, RowSize
from agent_jax.config import (
    AugmentationConfig,
    Config,
    DataConfig,
    DomainConfig,
    LanguageConfig,
    MaeConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    VisionConfig,
)
from agent_jax.models.agent import abstract_params
from agent_jax.models.augmentation import augment
from agent_jax.models.losses import total
from agent_jax.models.random_keys import AUGMENTATION_KEY, STEP_KEY, purpose_key, row_keys
from agent_jax.runtime.sharding import batch_sharding, make_mesh, shard_batch
from agent_jax.train.optimizer import learning_rate_schedule, make_optimizer
from agent_jax.train.state import TrainState, abstract_state, init_state, state_shardings
from agent_jax.train.step import make_eval_step, make_train_step, microbatches

PAPER_COLOURS = AugmentationConfig(brightness=(0.7, 1.4), saturation=(0.7, 1.4), hue=0.05)
SIZES = {"width": 16, "depth": 2, "heads": 4, "mlp_width": 32}
ROWS_OF_BATCH = 16
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiles in half the time


def make_config(**train):
    model = ModelConfig(vision=VisionConfig(image_size=16, patch_size=4, **SIZES), mae=MaeConfig(**SIZES),
                        language=LanguageConfig(positions=32, vocabulary_size=70, vocabulary_multiple=8, **SIZES),
                        visual_tokens="visible")
    return Config(seed=3, model=model, train=TrainConfig(**{"steps": 10, "batch_size": ROWS_OF_BATCH, **train}),
                  data=DataConfig(domains={"one": DomainConfig(), "two": DomainConfig()}))


def make_batch(visual_tokens=5, slots=20, seed=0):
    size = RowSize(frames=2, image_size=16, slots=slots, targets=8)
    batch = Batch.fake(size, ROWS_OF_BATCH, visual_tokens=visual_tokens, vocabulary_size=70, domains=2, seed=seed)
    batch.language_weight_BT[3] = 0.0  # rows of unequal weight: a mean over microbatches of their means would be wrong
    batch.action_weight_BT[5, 2:] = 0.0
    batch.frame_weight_BF[7, 1] = 0.0
    return batch


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def host_params():
    return jax.device_get(init_state(make_config(), one_device(), optax.identity()).params)


def gradients_and_metrics(params, mesh, accumulation):
    """By a step of plain gradient descent at rate 1: the state's change is the gradient."""
    config, optimizer = make_config(accumulation=accumulation), optax.sgd(1.0)
    state = init_state(config, mesh, optimizer, jax.tree.map(np.zeros_like, params))
    state = dataclasses.replace(state, params=jax.device_put(params, jax.tree.map(lambda x: x.sharding, state.params)))
    batch = shard_batch(make_batch(), mesh)
    step = make_train_step(config, mesh, optimizer).lower(state, batch).compile(compiler_options=QUICK)
    after, metrics = step(state, batch)
    return jax.device_get((jax.tree.map(lambda old, new: old - np.asarray(new), params, after.params), metrics))


@pytest.fixture(scope="module")
def reference(host_params):
    return gradients_and_metrics(host_params, one_device(), 1)


@pytest.mark.parametrize(("mesh", "accumulation"), [
    (MeshConfig(data=8), 1),
    (MeshConfig(replica=2, data=1, fsdp=2, tensor=2), 4),
    pytest.param(MeshConfig(data=1, fsdp=8), 1, marks=pytest.mark.slow),
    pytest.param(MeshConfig(data=2, fsdp=2, tensor=2), 4, marks=pytest.mark.slow),
    pytest.param(MeshConfig(replica=2, data=1, tensor=4), 1, marks=pytest.mark.slow),
])
def test_loss_and_gradients_equal_one_device_and_one_batch(host_params, reference, mesh, accumulation):
    gradients, metrics = gradients_and_metrics(host_params, make_mesh(mesh), accumulation)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(reference[0])) > 0.1  # there is something to compare
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), gradients, reference[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), metrics, reference[1])


def five_exact_steps(params, mesh, **train):
    """Losses and parameters of five AdamW steps in float64, each on another batch."""
    config = make_config(**train)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float64"))
    optimizer = make_optimizer(config.optimizer, config.train.steps, params)
    with jax.enable_x64():
        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        state = TrainState(np.zeros((), np.int32), exact, jax.jit(optimizer.init)(exact))
        state = jax.device_put(state, state_shardings(abstract_state(config, mesh, optimizer)))
        batches = [shard_batch(make_batch(seed=seed), mesh) for seed in range(5)]
        step = make_train_step(config, mesh, optimizer).lower(state, batches[0]).compile(compiler_options=QUICK)
        losses = []
        for batch in batches:
            state, metrics = step(state, batch)
            losses.append(float(metrics.loss))
        return losses, jax.device_get(state.params)


@pytest.fixture(scope="module")
def exact_reference(host_params):
    return five_exact_steps(host_params, one_device())


@pytest.mark.parametrize(("mesh", "train"), [
    (MeshConfig(replica=2, data=1, fsdp=2, tensor=2), {"rows_per_device": 2}),  # two microbatches
    pytest.param(MeshConfig(replica=2, data=2, fsdp=2), {}, marks=pytest.mark.slow),
    pytest.param(MeshConfig(data=2, tensor=4), {"accumulation": 4}, marks=pytest.mark.slow),
])
def test_five_steps_of_adamw_in_float64_are_the_same_on_every_mesh(host_params, exact_reference, mesh, train):
    losses, params = five_exact_steps(host_params, make_mesh(mesh), **train)
    np.testing.assert_allclose(losses, exact_reference[0], rtol=1e-10, atol=0)
    assert len(set(losses)) == 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), params, exact_reference[1])
    assert params["connector"]["kernel"].dtype == np.float64


@pytest.fixture(scope="module")
def trained(host_params):
    """Three steps of the real optimizer, some parameters frozen, and what they left behind."""
    config = dataclasses.replace(make_config(), optimizer=OptimizerConfig(
        learning_rate=0.01, warmup=0.0, ema=0.9, freeze=("language/position_embedding", "vision/blocks/.*")))
    mesh = one_device()
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
    step, state = make_train_step(config, mesh, optimizer), init_state(config, mesh, optimizer, host_params)
    batch, given, metrics = shard_batch(make_batch(), mesh), [], []
    for _ in range(3):
        given.append(state)
        state, told = step(state, batch)
        metrics.append(jax.device_get(told))
    return config, step, batch, given, state, metrics


def test_the_step_is_compiled_once(trained):
    assert trained[1]._cache_size() == 1


def test_the_state_is_donated_and_the_batch_is_not(trained):
    _, _, batch, given, state, _ = trained
    assert all(leaf.is_deleted() for old in given for leaf in jax.tree.leaves(old))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((batch, state)))


def test_the_loss_falls_and_the_step_counts(trained):
    _, _, _, _, state, metrics = trained
    assert int(state.step) == 3
    assert metrics[0].loss > metrics[1].loss > metrics[2].loss


def test_what_is_frozen_stays_bitwise_and_the_rest_moves(trained, host_params):
    state = trained[4]
    place = lambda params: params["language"]["position_embedding"]  # noqa: E731
    np.testing.assert_array_equal(place(state.params), place(host_params))
    jax.tree.map(np.testing.assert_array_equal, state.params["vision"]["blocks"], host_params["vision"]["blocks"])
    assert not np.array_equal(state.params["connector"]["kernel"], host_params["connector"]["kernel"])


def test_the_gradient_norm_is_that_of_trained_parameters(trained, reference):
    gradients = {name: dict(part) for name, part in reference[0].items()}
    norm = lambda tree: np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(tree)))  # noqa: E731
    everything = norm(gradients)
    del gradients["language"]["position_embedding"], gradients["vision"]["blocks"]
    np.testing.assert_allclose(trained[5][0].gradient_norm, norm(gradients), rtol=1e-5)
    assert everything > 1.001 * trained[5][0].gradient_norm


def test_the_average_lags_behind_the_parameters(trained, host_params):
    state = trained[4]
    start, live = host_params["connector"]["bias"], np.asarray(state.params["connector"]["bias"])
    mean = np.asarray(state.averaged["connector"]["bias"])
    assert 0 < np.linalg.norm(mean - start) < np.linalg.norm(live - start)


def test_metrics_hold_the_rate_the_counts_and_the_losses(trained):
    config, _, _, _, _, metrics = trained
    rate = learning_rate_schedule(config.optimizer, config.train.steps)
    np.testing.assert_allclose([m.learning_rate for m in metrics], [rate(0), rate(1), rate(2)], rtol=1e-6)
    first, batch = metrics[0], make_batch()
    assert (first.rows, first.frames, first.slots) == (ROWS_OF_BATCH, 2 * ROWS_OF_BATCH, 20 * ROWS_OF_BATCH)
    np.testing.assert_allclose(first.loss, total(first.sums, first.weights, config.loss), rtol=1e-6)
    assert first.weights.action.shape == (2,)
    assert first.weights.action.sum() == batch.action_weight_BT.sum()


def test_padding_is_not_counted(trained):
    _, step, _, _, state, _ = trained
    batch = make_batch()
    batch.segment_BS[4:], batch.clip_BF[4:], batch.clip_BF[0, 1], batch.segment_BS[0, 15:] = 0, -1, -1, 0
    _, metrics = step(jax.tree.map(jnp.copy, state), shard_batch(batch, one_device()))
    assert (metrics.rows, metrics.frames, metrics.slots) == (4, 7, 75)


def test_masks_and_dropout_change_with_the_step_and_repeat_with_it(trained):
    _, step, batch, _, state, _ = trained
    at = lambda number: dataclasses.replace(jax.tree.map(jnp.copy, state), step=jax.device_put(  # noqa: E731
        jnp.asarray(number, jnp.int32), state.step.sharding))
    losses = [float(step(at(number), batch)[1].loss) for number in (3, 4, 3)]
    assert losses[0] == losses[2] != losses[1]


def test_a_step_sees_and_paints_augmented_images_and_changes_neither_masks_nor_dropout(host_params):
    mesh, optimizer = one_device(), optax.sgd(0.0)
    config = dataclasses.replace(make_config(), data=DataConfig(
        domains={"one": DomainConfig(), "two": DomainConfig()}, augmentation=PAPER_COLOURS))
    batch = shard_batch(make_batch(), mesh)
    state = init_state(config, mesh, optimizer, host_params)

    def metrics(config, batch, number):
        at = dataclasses.replace(jax.tree.map(jnp.copy, state), step=jax.device_put(
            jnp.asarray(number, jnp.int32), state.step.sharding))
        step = make_train_step(config, mesh, optimizer).lower(at, batch).compile(compiler_options=QUICK)
        return jax.device_get(step(at, batch)[1])

    key = jax.random.fold_in(purpose_key(config.seed, STEP_KEY), 3)
    by_hand = augment(batch.frames_BFHWC, row_keys(key, batch.seed_B, AUGMENTATION_KEY), PAPER_COLOURS)
    assert np.abs(by_hand - np.asarray(batch.frames_BFHWC, np.float32)).mean() > 5
    expected = metrics(make_config(), dataclasses.replace(batch, frames_BFHWC=by_hand), 3)
    found = metrics(config, batch, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), found, expected)


def test_validation_does_not_augment(host_params):
    batch = make_batch(visual_tokens=17, slots=44)
    augmented = dataclasses.replace(make_config(), data=DataConfig(
        domains={"one": DomainConfig(), "two": DomainConfig()}, augmentation=PAPER_COLOURS))
    one, other = (str(make_eval_step(config, one_device()).trace(host_params, batch).jaxpr)
                  for config in (make_config(), augmented))
    assert one == other


def test_the_keys_of_a_row_follow_its_seed_not_its_place():
    key, seed_B = jax.random.key(1), jnp.asarray([7, 2**32 - 1, 0], jnp.uint32)
    data = lambda *arguments: jax.random.key_data(row_keys(*arguments))  # noqa: E731
    np.testing.assert_array_equal(data(key, seed_B[::-1], 0), data(key, seed_B, 0)[::-1])
    assert len(np.unique(np.concatenate([data(key, seed_B, 0), data(key, seed_B, 1)]), axis=0)) == 6


def test_microbatches_are_interleaved_rows_that_stay_on_their_device():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    rows_B = jax.device_put(np.arange(16), batch_sharding(mesh))
    split = jax.jit(lambda rows_B: microbatches(rows_B, 2, mesh)).lower(rows_B).compile()
    np.testing.assert_array_equal(split(rows_B), np.arange(16).reshape(8, 2).T)
    homes = {shard.device: set(np.asarray(shard.data)) for shard in rows_B.addressable_shards}
    for shard in split(rows_B).addressable_shards:
        assert set(np.asarray(shard.data).ravel()) == homes[shard.device]
    assert not any(name in split.as_text() for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))


def test_validation_is_repeatable_and_adds_up_over_batches(host_params):
    config, mesh = make_config(), one_device()
    step, batch = make_eval_step(config, mesh), make_batch(visual_tokens=17, slots=44)
    whole = step(host_params, batch)
    jax.tree.map(np.testing.assert_array_equal, whole, step(host_params, batch))
    names = ("language_weight_BT", "action_weight_BT", "frame_weight_BF", "segment_BS")
    halves = []
    for rows in (slice(0, 9), slice(9, 16)):  # the other rows become padding
        half = dataclasses.replace(batch, **{name: np.copy(getattr(batch, name)) for name in names})
        for name in names:
            getattr(half, name)[[row for row in range(16) if row not in range(16)[rows]]] = 0
        halves.append(step(host_params, half))
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-5), whole, *halves)
    assert np.all(np.asarray(whole[0].mae) > 0)
    assert step._cache_size() == 1


def test_validation_reads_as_many_rows_at_a_time_as_training_does(host_params):
    batch, mesh = make_batch(visual_tokens=17, slots=44), make_mesh(MeshConfig(), jax.devices()[:2])
    whole = make_eval_step(make_config(), one_device())(host_params, batch)
    step = make_eval_step(make_config(rows_per_device=2), mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, step(host_params, batch))
    text = step.lower(host_params, batch).as_text()
    assert "tensor<4x44x16xf32>" in text  # rows x slots x width: two rows of each of two devices
    assert "tensor<16x44x16xf32>" not in text


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_compiled():
    with pytest.raises(ValueError, match=r"config.train.batch_size=16 does not divide by 32 .*accumulation 4"):
        make_train_step(make_config(accumulation=4), make_mesh(MeshConfig()), optax.sgd(1.0))


def collectives(**mesh):
    """What two devices exchange in a step: kind and place of each collective."""
    config, mesh = make_config(), make_mesh(MeshConfig(**mesh), jax.devices()[:2])
    state = abstract_state(config, mesh, optax.sgd(1.0))
    step = make_train_step(config, mesh, optax.sgd(1.0)).lower(state, make_batch()).compile(compiler_options=QUICK)
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    return re.findall(rf' ({kinds})(?:-start)?\(.*op_name="([^"]*)"', step.as_text())


@pytest.mark.slow
def test_between_replicas_only_sums_are_exchanged_and_only_after_the_forward_pass():
    found = collectives(replica=2, data=1)
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert [place for _, place in found if "/jvp(Agent)" in place] == []
    assert sum("transpose(jvp(Agent))" in place for _, place in found) >= 3  # the gradients of the three stacks


def test_tensor_parallelism_sums_activations_twice_a_block_in_each_direction():
    found = collectives(data=1, tensor=2)
    in_blocks = [(kind, re.sub(r".*?(transpose\()?jvp\(Agent\)+/.*?(vision|mae|language)/.*/blocks/(.*)/dot_general",
                               r"\1\2 \3", place)) for kind, place in found if "/blocks/" in place]
    assert sorted(in_blocks) == sorted(
        ("all-reduce", f"{direction}{stack} {product}") for stack in ("vision", "mae", "language")
        for direction, product in (("", "attention/out"), ("", "mlp/down"),
                                   ("transpose(", "attention/qkv"), ("transpose(", "mlp/up")))


def compile_on_2_2_2():
    """Run by the test below, in a process of its own whose log it reads."""
    jax.config.update("jax_num_cpu_devices", 8)
    config, mesh = make_config(accumulation=2), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = abstract_state(config, mesh, optax.sgd(1.0))
    make_train_step(config, mesh, optax.sgd(1.0)).lower(state, make_batch()).compile(compiler_options=QUICK)
    print("compiled")


def test_no_activation_is_copied_whole_to_every_device(root):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0", "PYTHONPATH": f"{root}:{Path(__file__).parent}"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # what is read from there was warned of when it was compiled
    done = subprocess.run([sys.executable, "-c", f"import {Path(__file__).stem} as t; t.compile_on_2_2_2()"],
                          env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout.strip().endswith("compiled"), done.stderr
    assert "rematerialization" not in done.stderr
