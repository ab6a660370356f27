"""One optimizer step: a global batch in, the next state and what the log needs out.

    weights of the whole batch ---------------------------------------.
    rows 0, A, 2A, ... -> loss sums / weights -> gradients --.         |
    rows 1, A+1, ...   -> loss sums / weights -> gradients --+-- sum --+--> optimizer -> state
    ... (A microbatches, one after another)                --'

Microbatches are interleaved rows, so each device keeps its rows, and the loss is linear in the sums, so their gradients
add up to that of the batch. Keys are made for each row from its own seed: masks, dropout and augmentation do not know
how rows were spread over devices and microbatches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agent_jax.batch import Batch
from agent_jax.config import Config
from agent_jax.config.kernels import kernel_on
from agent_jax.models.agent import Agent, Params
from agent_jax.models.augmentation import augment
from agent_jax.models.choice_table import ChoiceTable
from agent_jax.models.compute import Compute
from agent_jax.models.lora import merged
from agent_jax.models.losses import LossSums, loss_sums, loss_weights, total
from agent_jax.models.mae import kept_patches
from agent_jax.models.random_keys import (
    AUGMENTATION_KEY,
    DROPOUT_KEY,
    MASK_KEY,
    STEP_KEY,
    VALIDATION_KEY,
    purpose_key,
    row_keys,
)
from agent_jax.runtime.compiler_options import compiler_options
from agent_jax.runtime.sharding import ROWS, batch_sharding, check_divides, microbatches_of_step, replicated
from agent_jax.train.optimizer import learning_rate_schedule, trained_mask, update_average
from agent_jax.train.state import TrainState, abstract_state, state_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What one step has to tell, as scalars and (domains,) vectors on the device; metrics.py makes a record of it."""

    loss: jax.Array  # before the update
    sums: LossSums
    weights: LossSums
    gradient_norm: jax.Array  # of trained parameters, before clipping
    learning_rate: jax.Array
    rows: jax.Array  # int32, rows that hold anything
    frames: jax.Array  # int32, images less padding
    slots: jax.Array  # int32, slots less padding


def domain_count(config: Config) -> int:
    """How many domains the losses are kept apart for."""
    return max(1, len(config.data.domains))


def hidden_patches(config: Config) -> int:
    """I, patches hidden in each image by the mask."""
    patches = config.model.vision.patches
    return patches - kept_patches(patches, config.model.mae.mask_ratio)


def microbatches(batch: Batch, count: int, mesh: Mesh) -> Batch:
    """Leaves (B, ...) as (count, B / count, ...): microbatch i holds rows i, count + i, ..., each on its own device."""
    sharding = NamedSharding(mesh, PartitionSpec(None, *ROWS))

    def split(leaf: jax.Array) -> jax.Array:
        interleaved = leaf.reshape(leaf.shape[0] // count, count, *leaf.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(interleaved, sharding)

    return jax.tree.map(split, batch)


def make_train_step(
    config: Config, mesh: Mesh, optimizer: optax.GradientTransformation, choices: ChoiceTable | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """The jitted train step.

    Args:
        config: of the run; `model.language.vocabulary_size` is set.
        mesh: of `make_mesh`.
        optimizer: of `make_optimizer`, or any other transformation.
        choices: of the domains' action specs, for the accuracy that the metrics report; None: all ids are legal.

    Returns:
        step(state, batch) -> (state, metrics). The state given is donated: its arrays are gone afterwards. The batch is
        on the mesh (`shard_batch`) with `config.train.batch_size` rows.

    Raises:
        ValueError: if model or batch do not divide over the mesh.
    """
    check_divides(config, mesh)
    agent, domains, hidden = _agent(config, mesh), domain_count(config), hidden_patches(config)
    count = microbatches_of_step(config.train, mesh)
    schedule = learning_rate_schedule(config.optimizer, config.train.steps)
    state = abstract_state(config, mesh, optimizer)
    shardings = state_shardings(state)
    trained = trained_mask(state.params, config.optimizer.freeze)

    def loss_of(params: Params, batch: Batch, weights: LossSums, key: jax.Array) -> tuple[jax.Array, LossSums]:
        # No gradient is computed for what is frozen, nor counted in the norm.
        params = jax.tree.map(lambda leaf, train: leaf if train else jax.lax.stop_gradient(leaf), params, trained)
        params = merged(params, config.lora.scale)
        frames_BFHWC = augment(batch.frames_BFHWC, row_keys(key, batch.seed_B, AUGMENTATION_KEY),
                               config.data.augmentation)
        batch = dataclasses.replace(batch, frames_BFHWC=frames_BFHWC)
        output: Any = agent.apply({"params": params}, batch, mask_keys_B=row_keys(key, batch.seed_B, MASK_KEY),
                             dropout_keys_B=row_keys(key, batch.seed_B, DROPOUT_KEY),
                             visual_tokens=config.model.visual_tokens)
        sums = loss_sums(output, batch, domains, choices)
        return total(sums, weights, config.loss), sums

    @_on_mesh(mesh)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(purpose_key(config.seed, STEP_KEY), state.step)
        weights = loss_weights(batch, domains, hidden, classes=config.model.classes > 0)

        def of_rows(rows: Batch) -> tuple[Params, tuple[jax.Array, LossSums]]:
            told, gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params, rows, weights, key)
            return jax.lax.with_sharding_constraint(gradients, shardings.params), told

        if count == 1:  # nothing to add up: no second tree of gradients
            gradients, (loss, sums) = of_rows(batch)
        else:
            rows = microbatches(batch, count, mesh)
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                                 jax.eval_shape(of_rows, jax.tree.map(lambda leaf: leaf[0], rows)))
            (gradients, (loss, sums)), _ = jax.lax.scan(
                lambda carry, rows: (jax.tree.map(jnp.add, carry, of_rows(rows)), None), zeros, rows)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(loss, sums, weights, optax.tree.norm(gradients), schedule(state.step), *_counts(batch))
        averaged = state.averaged
        if averaged is not None:
            averaged = update_average(averaged, params, config.optimizer.ema, state.step + 1)
        return TrainState(state.step + 1, params, opt_state, averaged), metrics

    return jax.jit(step, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=(shardings, replicated(mesh)),
                   donate_argnums=0, compiler_options=compiler_options(mesh.devices.flat[0], config.model.dtype))


def make_eval_step(config: Config, mesh: Mesh, choices: ChoiceTable | None = None
                   ) -> Callable[[Params, Batch], tuple[LossSums, LossSums]]:
    """The jitted validation step: no dropout, every patch shown to the language model, masks that are always the same.

    Returns:
        step(params, batch) -> (sums, weights), to be added up over batches before `losses.total` or `losses.means`. The
        batch is laid out for V = 1 + P visual tokens, whatever the training sees; it is read in the microbatches of a
        train step, so that it needs no more memory.
    """
    agent, domains, hidden = _agent(config, mesh), domain_count(config), hidden_patches(config)
    count = microbatches_of_step(config.train, mesh)

    @_on_mesh(mesh)
    def step(params: Params, batch: Batch) -> tuple[LossSums, LossSums]:
        def sums_of(batch: Batch) -> LossSums:
            keys_B = row_keys(purpose_key(config.seed, VALIDATION_KEY), batch.seed_B, MASK_KEY)
            output: Any = agent.apply({"params": params}, batch, mask_keys_B=keys_B, visual_tokens="all")
            return loss_sums(output, batch, domains, choices)

        weights = loss_weights(batch, domains, hidden, classes=config.model.classes > 0)
        if count == 1:
            return sums_of(batch), weights
        sums = jax.lax.map(sums_of, microbatches(batch, count, mesh))
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sums), weights

    return jax.jit(step, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh),
                   compiler_options=compiler_options(mesh.devices.flat[0], config.model.dtype))


def _agent(config: Config, mesh: Mesh) -> Agent:
    """The agent with the kernels of the mesh's devices."""
    return Agent(config.model, Compute.of(config.model, kernel_on(mesh.devices.flat[0], config.model)))


def _on_mesh(mesh: Mesh) -> Callable[[Callable], Callable]:
    """A decorator: trace the function with the mesh set, for `constrain_rows` in the model."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def traced(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*arguments)

        return traced

    return decorate


def _counts(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows, images and slots that are not padding."""
    real_BS, real_BF = batch.segment_BS > 0, batch.clip_BF >= 0
    return jnp.sum(jnp.any(real_BS, axis=1)), jnp.sum(real_BF), jnp.sum(real_BS)
