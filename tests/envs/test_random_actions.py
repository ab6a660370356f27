from __future__ import annotations

import numpy as np
import pytest

from agent_jax.actions import BABYAI, CALVIN, ActionSpec, BoundSpec
from agent_jax.actions.declarations import vocabulary_blocks
from agent_jax.actions.simulators import LIBERO, LIBERO_STATE, METAWORLD, METAWORLD_STATE, VIZDOOM
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.envs.random_actions import uniform_actions

SPECS = [METAWORLD, VIZDOOM, LIBERO, CALVIN, BABYAI]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_random_actions_fit_their_spec_and_fill_its_bounds(spec: ActionSpec) -> None:
    actions = uniform_actions(spec, 400)
    for key, (shape, dtype) in spec.fields.items():
        values = np.array([action[key] for action in actions])
        assert values.shape == (400, *shape)
        assert values.dtype == dtype
        low, high = spec.bounds(key)
        assert (values >= low).all()
        assert (values <= high).all()
        np.testing.assert_allclose(values.mean(axis=0), (low + high) / 2, atol=0.12 * np.max(high - low))
        np.testing.assert_allclose(values.max(axis=0), high, atol=0.03 * np.max(high - low))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_random_action_can_be_encoded_and_decoded(spec: ActionSpec) -> None:
    blocks = vocabulary_blocks([spec.block], [spec.to_dict()])
    bound = BoundSpec(spec, Vocabulary.build("bytes", blocks))
    for action in uniform_actions(spec, 20):
        ids = bound.encode(action)
        assert bound.automaton.accepts(ids)
        np.testing.assert_array_equal(bound.encode(bound.decode(ids)), ids)


def test_a_gripper_with_two_values_has_one_of_them() -> None:
    grips = [float(action["action"][6]) for action in uniform_actions(CALVIN, 200)]
    assert set(grips) == {-1.0, 1.0}
    assert 60 < grips.count(1.0) < 140


def test_the_table_is_always_the_same() -> None:
    for one, other in zip(uniform_actions(METAWORLD, 5), uniform_actions(METAWORLD, 5), strict=True):
        np.testing.assert_array_equal(one["action"], other["action"])


def test_actions_and_states_of_an_environment_have_one_block_and_no_common_token() -> None:
    for action, state in ((METAWORLD, METAWORLD_STATE), (LIBERO, LIBERO_STATE)):
        assert action.block == state.block
        assert not set(action.tokens()) & set(state.tokens())
