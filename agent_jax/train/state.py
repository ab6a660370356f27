"""The train state: what changes from step to step, and how it comes to live on the mesh.

It is made without ever being whole in one place:

    shapes (eval_shape)  ->  shardings (by path, runtime/sharding.py)  ->  jax.jit(create, out_shardings)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from agent_jax.config import Config, OptimizerConfig
from agent_jax.models.agent import Params, init_params
from agent_jax.models.lora import parameter_shapes, with_adapters
from agent_jax.models.random_keys import INIT_KEY, purpose_key
from agent_jax.runtime.compiler_options import QUICKLY_COMPILED, compiler_options
from agent_jax.runtime.sharding import tree_shardings
from agent_jax.train.optimizer import start_average

# Drawing a small model's parameters takes milliseconds, compiling the program for it seconds. So up to this number it
# is compiled without optimization: in half the time, to draw five times slower. Values differ by 3e-7 at most.
_SMALL_PARAMETERS = 10_000_000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Model and optimizer are closed over; this is all that a checkpoint must hold of them."""

    step: Any  # int32 scalar: optimizer updates done
    params: Params
    opt_state: Any
    averaged: Any = None  # exponential average of the trained parameters; None without config.optimizer.ema

    @property
    def acting_params(self) -> Params:
        """The parameters to evaluate and act with: the averaged ones; the last ones where frozen or not averaged."""
        if self.averaged is None:
            return self.params
        return jax.tree.map(lambda mean, last: last if isinstance(mean, optax.MaskedNode) else mean,
                            self.averaged, self.params, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))


def abstract_state(config: Config, mesh: Mesh, optimizer: optax.GradientTransformation) -> TrainState:
    """A TrainState of `jax.ShapeDtypeStruct`s that carry their shardings; nothing is computed.

    Raises:
        ValueError: if an array does not divide over the mesh.
    """
    shapes = jax.eval_shape(lambda params: _create(params, optimizer, config.optimizer), parameter_shapes(config))
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                        shapes, tree_shardings(mesh, shapes))


def state_shardings(state: TrainState) -> TrainState:
    """The sharding of each leaf of an abstract or a real state."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def init_state(
    config: Config, mesh: Mesh, optimizer: optax.GradientTransformation, params: Params | None = None
) -> TrainState:
    """The state before the first step, each array made on the devices where it lives.

    Args:
        config: its seed decides the fresh parameters, whatever the mesh.
        mesh: of `make_mesh`.
        optimizer: of `make_optimizer`.
        params: the model's parameters to start from, complete, on the host or on the mesh; they are not changed. None:
            fresh ones. Adapters are always fresh.

    Returns:
        step 0, the parameters, the optimizer's initial state for them, and their average.
    """
    shapes = abstract_state(config, mesh, optimizer)
    shardings = state_shardings(shapes)

    def create(params: Params | None) -> TrainState:
        key = purpose_key(config.seed, INIT_KEY)
        params = init_params(config.model, key) if params is None else params
        return _create(with_adapters(params, config.lora, key), optimizer, config.optimizer)

    if params is None:
        small = sum(leaf.size for leaf in jax.tree.leaves(shapes.params)) < _SMALL_PARAMETERS
        device = mesh.devices.flat[0]
        quickly = small and device.platform == "cpu"
        options = QUICKLY_COMPILED if quickly else compiler_options(device, config.model.dtype)
        return jax.jit(lambda: create(None), out_shardings=shardings, compiler_options=options)()
    placed = jax.device_put(params, {name: shardings.params[name] for name in params})
    return jax.jit(create, out_shardings=shardings)(placed)


def _create(params: Params, optimizer: optax.GradientTransformation, config: OptimizerConfig) -> TrainState:
    averaged = start_average(params, config.freeze) if config.ema > 0 else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), averaged)
