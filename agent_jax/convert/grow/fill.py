"""The parameters of the new model, from those of the checkpoint and a plan."""

from __future__ import annotations

import jax
import numpy as np

from agent_jax.checkpoints.fingerprint import flat, nested
from agent_jax.convert.grow.plan import (
    PATCH_POSITIONS,
    POSITIONS,
    TOKENS,
    Growth,
    LeafGrowth,
    Shape,
    keeps_table,
)
from agent_jax.convert.huggingface.positions import resized_positions
from agent_jax.models.agent import Params, init_params
from agent_jax.models.language import POSITION_OFFSET


def fill(params: Params, growth: Growth, key: jax.Array, seed: int) -> Params:
    """The parameters of the new model. Carried ones are the arrays of `params`; the others are NumPy arrays.

    Args:
        params: of the checkpoint; what changes must be readable as a whole on this process.
        growth: the plan.
        key: of parameters that are initialised.
        seed: of the rows of new tokens.
    """
    found, fresh = flat(params), _fresh(growth, key)
    return nested({leaf.path: fresh[leaf.path] if leaf.path in fresh else _taken(found[leaf.path], leaf, growth, seed)
                   for leaf in growth.leaves if leaf.shape is not None})


def _fresh(growth: Growth, key: jax.Array) -> dict[str, np.ndarray]:
    """The arrays that are initialised as a whole."""
    paths = {leaf.path for leaf in growth.leaves if leaf.fresh and not (leaf.carried or leaf.grown)}

    def draw() -> dict[str, jax.Array]:  # XLA computes only what is returned
        return {path: leaf for path, leaf in flat(init_params(growth.target.model, key)).items() if path in paths}

    return jax.device_get(jax.jit(draw)()) if paths else {}


def _taken(array: jax.Array, leaf: LeafGrowth, growth: Growth, seed: int) -> jax.Array | np.ndarray:
    """One array of the new model from that of the checkpoint."""
    assert leaf.shape is not None
    if leaf.path == TOKENS and not keeps_table(growth.source, growth.target, growth.tokens):
        return _token_table(np.asarray(array), leaf.shape, growth, seed)
    if array.shape == leaf.shape:
        return array
    if leaf.path == PATCH_POSITIONS:
        model = growth.target.model.vision
        return resized_positions(np.asarray(array), model.image_size // model.patch_size)
    assert leaf.path == POSITIONS, leaf.path
    return _positions(np.asarray(array), leaf.shape[0])


def _token_table(table_KD: np.ndarray, shape: Shape, growth: Growth, seed: int) -> np.ndarray:
    """The rows by name; new ones are the mean of the carried rows + N(0, token_std), padding is zeros."""
    source_K = growth.tokens.source_K
    rows = np.zeros(shape, table_KD.dtype)
    known = np.flatnonzero(source_K >= 0)
    rows[known] = table_KD[source_K[known]]
    new = np.flatnonzero(source_K < 0)
    own = source_K[known[~growth.tokens.copied_K[known]]]
    noise = np.random.default_rng(seed).standard_normal((len(new), shape[1]))
    rows[new] = table_KD[own].mean(axis=0, dtype=np.float64) + growth.target.model.language.token_std * noise
    return rows


def _positions(table_PD: np.ndarray, rows: int) -> np.ndarray:
    """The first `rows` of a table of positions; rows that it lacks repeat it (Longformer, Beltagy et al., 2020)."""
    known = len(table_PD) - POSITION_OFFSET
    index = np.concatenate([np.arange(POSITION_OFFSET), POSITION_OFFSET + np.arange(rows - POSITION_OFFSET) % known])
    return table_PD[index]
