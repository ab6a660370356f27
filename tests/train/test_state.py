"""The train state: its shapes, where its arrays live, and that the mesh does not change them."""

import dataclasses

import jax
import numpy as np
import pytest

from agent_jax.config import Config, LanguageConfig, MaeConfig, MeshConfig, ModelConfig, OptimizerConfig, VisionConfig
from agent_jax.models.agent import abstract_params, init_params
from agent_jax.models.random_keys import INIT_KEY, STEP_KEY, VALIDATION_KEY, purpose_key
from agent_jax.runtime.sharding import make_mesh, tree_shardings
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.state import abstract_state, init_state, state_shardings

SIZES = {"width": 16, "depth": 2, "heads": 4, "mlp_width": 32}
MODEL = ModelConfig(vision=VisionConfig(image_size=16, patch_size=4, **SIZES), mae=MaeConfig(**SIZES),
                    language=LanguageConfig(positions=32, vocabulary_size=70, vocabulary_multiple=8, **SIZES))
CONFIG = Config(model=MODEL, optimizer=OptimizerConfig(ema=0.9))
OPTIMIZER = make_optimizer(CONFIG.optimizer, 10, abstract_params(MODEL))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def state(mesh):
    return init_state(CONFIG, mesh, OPTIMIZER)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_state_is_born_with_the_shapes_and_shardings_of_its_abstract_form(mesh, state):
    abstract = abstract_state(CONFIG, mesh, OPTIMIZER)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for expected, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)
    assert state_shardings(abstract) == tree_shardings(mesh, abstract)
    table = state.params["language"]["token_embedding"]
    assert table.addressable_shards[0].data.shape == (table.shape[0] // 2, table.shape[1])
    assert int(state.step) == 0


def test_fresh_parameters_follow_the_seed_and_not_the_mesh(state):
    on_one_device = jax.jit(lambda key: init_params(MODEL, key))
    assert_equal(on_one_device(purpose_key(CONFIG.seed, INIT_KEY)), jax.device_get(state.params))
    other = on_one_device(purpose_key(CONFIG.seed + 1, INIT_KEY))
    assert not np.array_equal(other["connector"]["kernel"], state.params["connector"]["kernel"])


def test_no_two_purposes_share_a_key():
    keys = [jax.random.key_data(purpose_key(seed, purpose)) for seed in (0, 1)
            for purpose in (INIT_KEY, STEP_KEY, VALIDATION_KEY)]
    assert len(np.unique(np.stack(keys), axis=0)) == 6


def test_a_state_starts_from_the_parameters_given_and_leaves_them_as_they_were(mesh, state):
    given = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, state.params)
    before = jax.tree.map(np.copy, given)
    started = init_state(CONFIG, mesh, OPTIMIZER, given)
    assert_equal(started.params, before)
    assert_equal(given, before)
    assert_equal(started.acting_params, before)  # not the fresh ones
    for leaf, expected in zip(jax.tree.leaves(started), jax.tree.leaves(state), strict=True):
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)


def test_the_full_size_state_has_two_moments_and_an_average_of_each_parameter(mesh):
    full = Config(model=dataclasses.replace(ModelConfig(), language=LanguageConfig(vocabulary_size=51_578)),
                  optimizer=OptimizerConfig(ema=0.999))
    params = abstract_params(full.model)
    optimizer = make_optimizer(full.optimizer, 10, params)
    abstract = abstract_state(full, mesh, optimizer)
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    scalars = 1 + len([leaf for leaf in jax.tree.leaves(abstract.opt_state) if not leaf.shape])
    assert size(abstract) == 4 * size(params) + scalars
