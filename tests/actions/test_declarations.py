"""Specs as they are declared: bounds that are open, and vocabulary blocks made of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agent_jax.actions import LANGUAGE_TABLE, ActionSpec, BoundSpec, StateSpec
from agent_jax.actions.declarations import closed, open_bounds, vocabulary_blocks
from agent_jax.actions.vocabulary import IAFM, Vocabulary
from agent_jax.config import DataConfig, DomainConfig, presets

OPEN = presets.arm_spec("arm", names=("dx", "grip"), bounds="quantiles", count=21)
STATE = presets.state_spec("arm", names=("x",), key="state", low=0, high=1, count=21)


def with_part(**changes: Any) -> dict[str, Any]:
    """OPEN with other fields of its first part; None takes one away."""
    content = copy.deepcopy(OPEN)
    part = content["groups"][0]["parts"][0]
    part |= changes
    content["groups"][0]["parts"][0] = {name: value for name, value in part.items() if value is not None}
    return content


def test_open_parts_are_found_with_method_and_quantiles():
    assert [(part.place, part.method, part.quantiles) for part in open_bounds(OPEN, "spec")] == [
        ("action[0]", "quantiles", (0.01, 0.99)), ("action[1]", "quantiles", (0.01, 0.99))]
    wider = open_bounds(with_part(quantiles=[0.001, 0.999]), "spec")
    assert wider[0].quantiles == (0.001, 0.999)
    assert open_bounds(LANGUAGE_TABLE.to_dict(), "spec") == []


def test_an_open_spec_is_closed_with_numbers_and_is_not_changed_itself():
    before = copy.deepcopy(OPEN)
    spec = ActionSpec.from_dict(closed(OPEN, {"action[0]": (-2.0, 2.0), "action[1]": (0.0, 1.0)}, "spec"))
    assert [part.limits for part in spec.parts] == [((-2.0, 2.0),), ((0.0, 1.0),)]
    assert before == OPEN
    assert closed(LANGUAGE_TABLE.to_dict(), {}, "spec") == LANGUAGE_TABLE.to_dict()
    with pytest.raises(ValueError, match=r"parts\[0\].bounds: no such field"):
        ActionSpec.from_dict(OPEN)  # whoever forgets to close it hears of it


@pytest.mark.parametrize(("content", "message"), [
    (with_part(bounds="quantile"), r"spec.groups\[0\].parts\[0\].bounds: found 'quantile', expected one of min_max, "
                                   r"quantiles, mean_3std; did you mean 'quantiles'\?"),
    (with_part(low=0.0), "found both bounds='quantiles' and low=0.0; leave out one"),
    (with_part(part="choice"), r"found it in a part 'choice', expected it only in 'bins'"),
    (with_part(bounds="min_max", quantiles=[0.1, 0.9]), "bounds='min_max' takes none"),
    (with_part(quantiles=[0.9, 0.1]), r"quantiles: found \[0.9, 0.1\], expected two shares, the lower first"),
])
def test_bounds_that_make_no_sense_are_refused_by_part(content, message):
    with pytest.raises(ValueError, match=message):
        open_bounds(content, "spec")


def test_a_block_of_ones_own_holds_the_tokens_of_every_spec_that_names_it():
    other = presets.arm_spec("other", names=("dx", "dy"), low=-1, high=1, count=21, block="arm")
    known, mine = vocabulary_blocks(("iafm", "arm"), [OPEN, STATE, other])
    assert known is IAFM
    expected = [*ActionSpec.from_dict(closed(OPEN, None, "")).tokens(), *StateSpec.from_dict(STATE).tokens(),
                *(f"dy_{k}" for k in range(21))]  # what is said alike is one token
    assert list(mine.tokens) == expected
    vocabulary = Vocabulary.build("bytes", [known, mine])
    again = Vocabulary.from_json(vocabulary.to_json())  # of a checkpoint: acting needs no config
    spec = ActionSpec.from_dict(other)
    values = {"action": [0.3, -0.9]}
    assert BoundSpec(spec, again).encode(values).tolist() == BoundSpec(spec, vocabulary).encode(values).tolist()


def test_a_block_that_nobody_names_is_refused():
    with pytest.raises(ValueError, match=r"config.vocabulary.blocks: 'amr' is none of the known blocks iafm, babyai, "
                                         r"and no ActionSpec .* has block='amr'; did you mean 'arm'\?"):
        vocabulary_blocks(("iafm", "amr"), [OPEN])


def test_the_specs_of_a_config_come_by_name_actions_before_states():
    domains = {"b": DomainConfig(action_spec=LANGUAGE_TABLE.to_dict()), "c": DomainConfig(),
               "a": DomainConfig(action_spec=OPEN, state_spec=STATE)}
    assert DataConfig(domains=domains).declared_specs == [OPEN, STATE, LANGUAGE_TABLE.to_dict()]
