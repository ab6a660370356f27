"""The parameters that acting holds: in the compute dtype where that changes no bit of what is computed."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from packed_rows import TINY, random_params

from agent_jax.models.agent import Agent
from agent_jax.models.compute import Compute
from agent_jax.models.language import LanguageModel
from agent_jax.policy.parameters import acting_params
from agent_jax.runtime import processor

CONFIG = dataclasses.replace(TINY, dtype="bfloat16")
COMPUTE = Compute(jnp.bfloat16, scan=None)


def processor_of(monkeypatch: pytest.MonkeyPatch, *instructions: str) -> None:
    monkeypatch.setattr(processor, "instructions", lambda: frozenset({"sse2", *instructions}))


def test_kernels_and_the_token_table_are_cast_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    processor_of(monkeypatch, "avx512_bf16")
    params = random_params(CONFIG)
    kept, cast = (flatten_dict(acting_params(params, dtype), sep="/") for dtype in ("float32", "bfloat16"))
    assert {path.split("/")[0] for path in cast} == {"vision", "connector", "language"}
    assert {leaf.dtype for leaf in kept.values()} == {jnp.dtype(jnp.float32)}
    for path, leaf in cast.items():
        is_cast = path.endswith(("kernel", "token_embedding"))
        assert leaf.dtype == (jnp.bfloat16 if is_cast else jnp.float32), path
        np.testing.assert_array_equal(leaf, kept[path].astype(leaf.dtype))
    assert "language/block_0/mlp/up/kernel" in cast


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about CPUs")
def test_a_cpu_without_products_of_bfloat16_keeps_what_it_would_have_to_cast_back(monkeypatch: pytest.MonkeyPatch):
    processor_of(monkeypatch)
    assert {leaf.dtype for leaf in jax.tree.leaves(acting_params(random_params(CONFIG), "bfloat16"))} == {
        jnp.dtype(jnp.float32)}


def test_what_is_computed_with_them_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch):
    processor_of(monkeypatch, "avx512_bf16")
    rng = np.random.default_rng(0)
    size = CONFIG.vision.image_size
    frames = rng.integers(0, 256, (1, 2, size, size, 3), np.uint8)
    language, token_BC = LanguageModel(CONFIG.language, COMPUTE), rng.integers(4, 40, (1, 12))

    def computed(dtype: str) -> list[jax.Array]:
        params = acting_params(random_params(CONFIG), dtype)
        with jax.disable_jit():  # or the compiler may leave out the rounding of a product's operand
            tokens = Agent(CONFIG, COMPUTE).apply({"params": params}, frames, np.arange(2)[None], method="encode")
            bound = language.bind({"params": params["language"]})
            hidden_BD, _ = bound.read(bound.embed(token_BC), np.arange(12)[None], np.array([11]))
            return [tokens, hidden_BD, bound.logits_of(hidden_BD, np.arange(8))]

    for found, expected in zip(computed("bfloat16"), computed("float32"), strict=True):
        np.testing.assert_array_equal(found, expected)
