"""Low-rank adapters of kernels and of the token table (LoRA; Hu et al., 2021, arXiv 2106.09685).

    W' = W + scale * A B        A (in, rank) is drawn, B (rank, out) is zero at first, W is frozen

The adapters are parameters next to the model's, under `lora/` and the path of what they adapt:

    language/blocks/mlp/up/kernel (L, D, M)  ->  lora/language/blocks/mlp/up/kernel/{a (L, D, rank), b (L, rank, M)}

The model does not know them: `merged` returns the parameters that it takes, within each training step as well.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from agent_jax.config import Config, LoraConfig
from agent_jax.help_pages import help_page
from agent_jax.models.agent import Params, abstract_params
from agent_jax.runtime.path_patterns import compile_patterns
from agent_jax.runtime.sharding import path_name

LORA = "lora"
_TABLE = "token_embedding"
_ADAPTABLE = ("kernel", _TABLE)  # the last name of a path


def parameter_shapes(config: Config) -> Params:
    """Shapes and dtypes of a run's parameters: the model's, and the adapters of `config.lora`.

    Raises:
        ValueError: as `with_adapters`.
    """
    params = abstract_params(config.model)
    if not config.lora.patterns:
        return params
    return jax.eval_shape(lambda params: with_adapters(params, config.lora, jax.random.key(0)), params)


def with_adapters(params: Params, config: LoraConfig, key: jax.Array) -> Params:
    """The parameters and a fresh adapter for each array that `config.patterns` choose; they compute the same.

    Args:
        params: of the model; arrays or shapes.
        config: patterns, rank and scale.
        key: of A's values, which depend on the adapted path alone otherwise.

    Raises:
        ValueError: a pattern matches no kernel; a rank above the smaller side of a kernel.
    """
    if not config.patterns:
        return params
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    adaptable = [path for path in leaves if path.endswith(_ADAPTABLE)]
    compiled = compile_patterns(config.patterns, adaptable, "config.lora.patterns",
                                help_page("guides/finetune.md", "Low-rank adapters"))
    adapters: dict[str, Any] = {}
    for path in adaptable:
        if any(pattern.fullmatch(path) for pattern in compiled):
            node = adapters
            for name in path.split("/"):
                node = node.setdefault(name, {})
            node |= _adapter(path, leaves[path].shape, config.rank, jax.random.fold_in(key, zlib.crc32(path.encode())))
    return {**params, LORA: adapters}


def _adapter(path: str, shape: Sequence[int], rank: int, key: jax.Array) -> dict[str, jax.Array]:
    """A and B of an array (layers, in, ...) below `blocks`, or (in, ...)."""
    depth = 1 if "/blocks/" in path else 0
    layers, (inputs, *outputs) = shape[:depth], shape[depth:]
    least = min(inputs, math.prod(outputs))
    if rank > least:
        raise ValueError(f"config.lora.rank={rank}: expected at most {least}, the smaller side of {path} "
                         f"{tuple(shape)}, which config.lora.patterns match")
    # x A keeps the variance of x; a row of the token table is looked up, not summed.
    deviation = (rank if path.endswith(_TABLE) else inputs) ** -0.5
    return {"a": deviation * jax.random.normal(key, (*layers, inputs, rank)), "b": jnp.zeros((*layers, rank, *outputs))}


def merged(params: Params, scale: float) -> Params:
    """The model's parameters, W + scale * A B where there is an adapter; `params` themselves without any."""
    if LORA not in params:
        return params

    def merge(tree: Any, adapters: Any) -> Any:
        if not isinstance(tree, dict):
            has_layers = adapters["a"].ndim == 3
            product = jnp.einsum("lir,lr...->li..." if has_layers else "ir,r...->i...", adapters["a"], adapters["b"])
            return tree + (scale * product).astype(tree.dtype)
        return {name: merge(part, adapters[name]) if name in adapters else part for name, part in tree.items()}

    return merge({name: part for name, part in params.items() if name != LORA}, params[LORA])


def adapted_paths(params: Any) -> set[str]:
    """Paths of the arrays that have an adapter; they are frozen."""
    leaves = jax.tree_util.tree_leaves_with_path(params.get(LORA, {}))
    return {path_name(path[:-1]) for path, _ in leaves}
