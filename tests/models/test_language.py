"""Cached reading computes what the language model computes, however a row is cut into chunks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_rows import TINY, random_params

from agent_jax.models.compute import Compute
from agent_jax.models.language import LanguageModel, VisibleCache
from agent_jax.models.transformer import layers_apart


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("cuts", [(24,), (3, 24), (12, 15, 16, 24)])
def test_a_row_read_in_chunks_gives_the_hidden_states_of_the_whole(depth: int, cuts: tuple[int, ...]):
    config = dataclasses.replace(TINY, language=dataclasses.replace(TINY.language, depth=depth))
    params = random_params(config)["language"]
    rng = np.random.default_rng(0)
    x_BSD = rng.standard_normal((2, 24, config.language.width)).astype(np.float32)
    position_BS = np.stack([np.arange(24), np.arange(24) + 5]).astype(np.int32)
    model = LanguageModel(config.language)
    segment_BS = np.ones((2, 24), np.int32)
    whole = model.apply({"params": params}, x_BSD, position_BS, segment_BS)[0]
    cached, past, first = LanguageModel(config.language, Compute(scan=None)), [], 0
    read = jax.jit(functools.partial(cached.apply, {"params": layers_apart(params)}, method="read"))
    for end in cuts:
        # What follows the last slot of a row in its chunk has no effect.
        chunk = np.concatenate([x_BSD[:, first:end], np.full((2, 4, x_BSD.shape[2]), 1e3, np.float32)], axis=1)
        position = np.concatenate([position_BS[:, first:end], np.zeros((2, 4), np.int32)], axis=1)
        last_B = np.full(2, end - first - 1)
        hidden_BD, new = read(chunk, position, last_B, tuple(past))
        np.testing.assert_allclose(hidden_BD, whole[:, end - 1], rtol=0, atol=1e-5)
        past.append(VisibleCache(new, np.broadcast_to(np.arange(end - first + 4) < end - first, (2, end - first + 4))))
        first = end


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_of_some_ids_are_those_of_all(dtype: Literal["float32", "bfloat16"]):
    config = dataclasses.replace(TINY, dtype=dtype)
    params = random_params(config)["language"]
    hidden_BD = jnp.asarray(np.random.default_rng(0).standard_normal((3, config.language.width)), dtype)
    ids_A = np.array([4, 9, 40])
    model = LanguageModel(config.language, Compute.of(config))
    all_B1K = model.apply({"params": params}, hidden_BD[:, None], method="logits")
    some_BA = model.apply({"params": params}, hidden_BD, ids_A, method="logits_of")
    assert some_BA.dtype == all_B1K.dtype == jnp.float32
    np.testing.assert_allclose(some_BA, np.asarray(all_B1K)[:, 0, ids_A], rtol=0, atol=1e-5)
