"""Low-rank adapters: what they adapt, that they change nothing at first, and merged against unmerged."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import Config, LanguageConfig, LoraConfig, MaeConfig, ModelConfig, OptimizerConfig, VisionConfig
from agent_jax.models.agent import abstract_params
from agent_jax.models.lora import LORA, merged, parameter_shapes, with_adapters
from agent_jax.train.optimizer import make_optimizer, trained_mask

MODEL = ModelConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=2, heads=2, mlp_width=32, temporal_attention=True),
    language=LanguageConfig(width=16, depth=3, heads=2, mlp_width=32, positions=32, vocabulary_size=40,
                            vocabulary_multiple=8),
    mae=MaeConfig(width=16, depth=1, heads=2, mlp_width=32))
LORA_CONFIG = LoraConfig(patterns=(".*",), rank=4, scale=0.5)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def params() -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), abstract_params(MODEL))


@pytest.fixture(scope="module")
def adapted_params(params: dict) -> dict:
    """The parameters with a fresh adapter of everything that can have one."""
    return jax.jit(lambda params: with_adapters(params, LORA_CONFIG, KEY))(params)


def test_every_kernel_and_the_token_table_can_be_adapted_and_nothing_else(params: dict, adapted_params: dict) -> None:
    adapted = {path.rpartition("/")[0] for path in flat(adapted_params[LORA])}
    assert adapted == {path for path in flat(params) if path.endswith(("/kernel", "token_embedding"))}
    some = LoraConfig(patterns=("language/blocks/attention/.*", "vision/.*/up/kernel"), rank=2)
    assert set(flat(parameter_shapes(Config(model=MODEL, lora=some))[LORA])) == {
        f"{path}/{name}" for path in ("language/blocks/attention/qkv/kernel", "language/blocks/attention/out/kernel",
                                      "vision/blocks/mlp/up/kernel") for name in "ab"}


def test_fresh_adapters_change_no_bit_and_do_not_depend_on_the_other_patterns(params: dict,
                                                                            adapted_params: dict) -> None:
    both, same = adapted_params, merged(adapted_params, 3.0)
    assert jax.tree.structure(same) == jax.tree.structure(params)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(params), strict=True))
    one = with_adapters(params, dataclasses.replace(LORA_CONFIG, patterns=("connector/.*",)), KEY)
    np.testing.assert_allclose(one[LORA]["connector"]["kernel"]["a"], both[LORA]["connector"]["kernel"]["a"], rtol=1e-6)
    assert with_adapters(params, LoraConfig(), KEY) is params
    assert merged(params, 1.0) is params


def test_merged_equals_unmerged(params: dict, adapted_params: dict) -> None:
    rng = np.random.default_rng(1)
    together = {**params, LORA: jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), adapted_params[LORA])}
    result, adapters = flat(merged(together, 0.5)), flat(together[LORA])
    for path, kernel in flat(params).items():
        if f"{path}/a" not in adapters:
            assert result[path] is kernel
            continue
        a, b = adapters[f"{path}/a"], adapters[f"{path}/b"]
        layers = range(kernel.shape[0]) if "/blocks/" in path else [slice(None)]
        for layer in layers:
            x = rng.standard_normal((5, a.shape[-2])).astype(np.float32)
            unmerged = np.tensordot(x, kernel[layer], 1) + 0.5 * np.tensordot(x @ a[layer], b[layer], 1)
            np.testing.assert_allclose(np.tensordot(x, result[path][layer], 1), unmerged, rtol=1e-5, atol=1e-5)


def test_what_is_adapted_is_frozen_and_has_no_moments(params: dict) -> None:
    together = with_adapters(params, dataclasses.replace(LORA_CONFIG, patterns=("language/.*/qkv/kernel",)), KEY)
    mask = flat(trained_mask(together, ()))
    assert [path for path, trained in mask.items() if not trained] == ["language/blocks/attention/qkv/kernel"]
    alone = OptimizerConfig(freeze=("(?!lora/).*",))
    state = jax.eval_shape(make_optimizer(alone, 10, together).init, together)
    assert all(f"{LORA}/" in path for path, leaf in flat(state).items() if leaf.ndim)


@pytest.mark.parametrize(("changes", "message"), [
    ({"patterns": ("langauge/.*",)}, r"config.lora.patterns\[0\]='langauge/.\*' matches no parameter path.*language"),
    ({"patterns": ("vision/.*", "language/final_norm/.*")}, r"config.lora.patterns\[1\]=.* matches no parameter path"),
    ({"rank": 17}, r"config.lora.rank=17: expected at most 16, the smaller side of \S+kernel"),
])
def test_adapters_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    config = Config(model=MODEL, lora=dataclasses.replace(LORA_CONFIG, **changes))
    with pytest.raises(ValueError, match=message):
        parameter_shapes(config)


def test_adapters_of_a_model_that_is_frozen_as_a_whole_are_refused() -> None:
    together = parameter_shapes(Config(model=MODEL, lora=LORA_CONFIG))
    with pytest.raises(ValueError, match=r"config.optimizer.freeze=\('.\*',\) freezes the adapters .*\(\?!lora/\)"):
        trained_mask(together, (".*",))
