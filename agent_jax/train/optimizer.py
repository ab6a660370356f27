"""AdamW or Muon with linear warm-up, cosine decay, clipping, freezing and learning rates by path, averaged parameters.

The parameters are split by path into trained and frozen ones; only the trained ones have optimizer state:

    trained   clip by their global norm -> Adam -> weight decay (kernels and token table) -> - rate (x factor by path)
    frozen    an update of exactly zero

With `config.optimizer.name="muon"` the kernels have Muon (Jordan et al., 2024) in the place of Adam: momentum, made
orthogonal by Newton-Schulz iterations, scaled to the root mean square of Adam's updates (Liu et al., 2025, arXiv
2502.16982), so that one learning rate suits both. Each layer, and each of query, key and value, is a matrix of its own.

Everything is an `optax.GradientTransformation` over the whole parameter tree. The average of the parameters is a field
of the train state (state.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from agent_jax.config import OptimizerConfig
from agent_jax.models.lora import LORA, adapted_paths
from agent_jax.runtime.path_patterns import compile_patterns
from agent_jax.runtime.sharding import path_name

# No weight decay: biases, the scales of norms, single learned tokens, and embeddings of position. The token table,
# which is also the output projection, decays like the kernels.
NO_DECAY = re.compile(r"(?:^|/)(?:bias|scale|class_embedding|mask_token|position_embedding)$")

_ADAM_RMS = 0.2  # of Muon's updates, as that of Adam's usually is


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> Callable[[Any], jax.Array]:
    """The learning rate by update, counted from 0, of a run of `steps`.

    Rises linearly to `learning_rate`, first update included, over the share `warmup` of the steps; then falls along
    half a cosine (Loshchilov & Hutter, 2017, eq. 5, without restarts) to `end_learning_rate` at the last update.
    """
    warm = min(round(config.warmup * steps), steps - 1)

    def rate(count: Any) -> jax.Array:
        rising = (count + 1) / max(warm, 1)
        fraction = jnp.clip((count + 1 - warm) / (steps - warm), 0.0, 1.0)
        falling = 0.5 * (1.0 + jnp.cos(math.pi * fraction))
        falling = config.end_learning_rate + (config.learning_rate - config.end_learning_rate) * falling
        return jnp.where(count < warm, config.learning_rate * rising, falling)

    return rate


def trained_mask(params: Any, freeze: tuple[str, ...]) -> Any:
    """True for each parameter that is trained: it has no adapter, and no pattern of `freeze` matches its whole path.

    Args:
        params: arrays or `jax.ShapeDtypeStruct`s.
        freeze: regular expressions, e.g. `"vision/.*"`.

    Raises:
        ValueError: for a pattern that is no regular expression or matches no path (with the nearest ones), or if
            nothing is left to train, of the adapters either.
    """
    compiled = compile_patterns(freeze, _paths(params), "config.optimizer.freeze")
    adapted = adapted_paths(params)
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path) not in adapted
        and not any(pattern.fullmatch(path_name(path)) for pattern in compiled), params)
    if adapted and not any(jax.tree.leaves(mask[LORA])):
        raise ValueError(f"config.optimizer.freeze={freeze!r} freezes the adapters of config.lora.patterns as well; "
                         "expected patterns that leave out lora/, as '(?!lora/).*'")
    if not any(jax.tree.leaves(mask)):
        raise ValueError(f"config.optimizer.freeze={freeze!r} freezes every parameter; nothing is left to train")
    return mask


def rate_factors(params: Any, factors: Sequence[Sequence[Any]]) -> dict[str, float]:
    """The factor of the learning rate by path, that of the first pattern that matches; 1 where none does is left out.

    Args:
        params: arrays or `jax.ShapeDtypeStruct`s.
        factors: (regular expression, factor) pairs.

    Raises:
        ValueError: for a pattern that is no regular expression or matches no path.
    """
    paths = _paths(params)
    compiled = compile_patterns([pattern for pattern, _ in factors], paths, "config.optimizer.learning_rate_factors")
    found: dict[str, float] = {}
    for path in paths:
        for pattern, (_, factor) in zip(compiled, factors, strict=True):
            if pattern.fullmatch(path):
                found[path] = float(factor)
                break
    return found


def _paths(params: Any) -> list[str]:
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def decay_mask(params: Any) -> Any:
    """True for each parameter that weight decay shrinks: all but those whose path `NO_DECAY` matches."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not NO_DECAY.search(path_name(path)), params)


def matrix_axes(params: Any) -> Any:
    """The axes of input and output of each kernel; the others count layers, or query, key and value.

    Args:
        params: kernels alone: (..., inputs, outputs), and (layers, inputs, 3, outputs) of `qkv`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: optax.contrib.MuonDimensionNumbers(
            leaf.ndim - (3 if "/qkv/" in path_name(path) else 2), leaf.ndim - 1), params)


def make_optimizer(config: OptimizerConfig, steps: int, params: Any) -> optax.GradientTransformation:
    """The optimizer of a run of `steps`.

    Args:
        config: name, rates, decay, clipping, freezing, factors by path (of the rate, so of the weight decay as well).
        steps: updates of the whole run: the schedule ends there.
        params: arrays or `jax.ShapeDtypeStruct`s; only paths are read.

    Raises:
        ValueError: as `trained_mask` and `rate_factors`.
    """
    chain = [clip_by_norm(config.clip_norm)] if config.clip_norm > 0 else []
    schedule = learning_rate_schedule(config, steps)
    adamw = optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decay_mask)
    if config.name == "muon":
        muon = optax.contrib.muon(schedule, weight_decay=config.weight_decay, consistent_rms=_ADAM_RMS,
                                  muon_weight_dimension_numbers=matrix_axes)
        chain.append(optax.partition({"muon": muon, "adamw": adamw}, lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: "muon" if path_name(path).endswith("kernel") else "adamw", params)))
    else:
        chain.append(adamw)
    if by_path := rate_factors(params, config.learning_rate_factors):
        chain.append(optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * by_path.get(path_name(path), 1.0), updates)))
    labels = jax.tree.map(lambda trained: "trained" if trained else "frozen", trained_mask(params, config.freeze))
    return optax.partition({"trained": optax.chain(*chain), "frozen": optax.set_to_zero()}, labels)


def clip_by_norm(most: float) -> optax.GradientTransformation:
    """Scale all gradients by the one factor that brings their joint norm down to `most`, if it is above.

    As `optax.clip_by_global_norm`, whose quotient of every gradient and the norm is an array of its own to XLA:CPU, to
    be written and read twice: 4 of the 15 times that an update goes through memory of the size of the parameters. A
    factor is fused into what comes next.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < most, 1.0, most / norm)
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def start_average(params: Any, freeze: tuple[str, ...]) -> Any:
    """The average before the first update: copies of the trained parameters, and nothing for frozen ones.

    Raises:
        ValueError: as `trained_mask`.
    """
    return jax.tree.map(lambda leaf, trained: jnp.asarray(leaf) if trained else optax.MaskedNode(), params,
                        trained_mask(params, freeze))


def update_average(average: Any, params: Any, decay: float, count: Any) -> Any:
    """The bias-corrected exponential average after `count` updates: `sum_i decay^(t-i) p_i / sum_i decay^(t-i)`.

    As in Adam (Kingma & Ba, 2015, section 3), of parameters rather than gradients. It is kept in the corrected form, so
    that it can be read at any moment: the initial parameters leave no trace after the first update.

    Args:
        average: of `start_average`, or of the update before.
        params: after this update.
        decay: of the average.
        count: int32 scalar, updates done, this one included.
    """
    share = (1.0 - decay) / -jnp.expm1(count * math.log(decay))  # of the newest; 1 at first, 1 - decay at last

    def newer(mean: Any, param: Any) -> Any:
        return mean if isinstance(mean, optax.MaskedNode) else mean + (share * (param - mean)).astype(mean.dtype)

    return jax.tree.map(newer, average, params, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))
