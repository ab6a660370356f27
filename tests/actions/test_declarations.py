"""Declared specs: open bounds, and vocabulary blocks made of specs."""

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
    """OPEN with other fields in its first part; None removes a field."""
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


def test_closing_an_open_spec_gives_a_copy_with_numbers():
    before = copy.deepcopy(OPEN)
    spec = ActionSpec.from_dict(closed(OPEN, {"action[0]": (-2.0, 2.0), "action[1]": (0.0, 1.0)}, "spec"))
    assert [part.limits for part in spec.parts] == [((-2.0, 2.0),), ((0.0, 1.0),)]
    assert before == OPEN
    assert closed(LANGUAGE_TABLE.to_dict(), {}, "spec") == LANGUAGE_TABLE.to_dict()
    with pytest.raises(ValueError, match=r"parts\[0\].bounds: no such field"):
        ActionSpec.from_dict(OPEN)  # an open spec must be closed first


@pytest.mark.parametrize(("content", "message"), [
    (with_part(bounds="quantile"), r"spec.groups\[0\].parts\[0\].bounds: found 'quantile', .*'quantiles'\?"),
    (with_part(low=0.0), "found both bounds='quantiles' and low=0.0"),
    (with_part(part="choice"), "found in a part 'choice', expected only in 'bins'"),
    (with_part(bounds="min_max", quantiles=[0.1, 0.9]), "quantiles: found with bounds='min_max'"),
    (with_part(quantiles=[0.9, 0.1]), r"quantiles: found \[0.9, 0.1\], expected two numbers"),
])
def test_inconsistent_bounds_are_refused_by_part(content, message):
    with pytest.raises(ValueError, match=message):
        open_bounds(content, "spec")


def test_a_custom_block_has_the_tokens_of_all_its_specs():
    other = presets.arm_spec("other", names=("dx", "dy"), low=-1, high=1, count=21, block="arm")
    known, custom = vocabulary_blocks(("iafm", "arm"), [OPEN, STATE, other])
    assert known is IAFM
    expected = [*ActionSpec.from_dict(closed(OPEN, None, "")).tokens(), *StateSpec.from_dict(STATE).tokens(),
                *(f"dy_{k}" for k in range(21))]  # equal names share a token
    assert list(custom.tokens) == expected
    vocabulary = Vocabulary.build("bytes", [known, custom])
    loaded = Vocabulary.from_json(vocabulary.to_json())  # as from a checkpoint
    spec = ActionSpec.from_dict(other)
    values = {"action": [0.3, -0.9]}
    assert BoundSpec(spec, loaded).encode(values).tolist() == BoundSpec(spec, vocabulary).encode(values).tolist()


def test_an_unknown_block_is_refused():
    with pytest.raises(ValueError, match=r"config.vocabulary.blocks: found 'amr', .*iafm, babyai.*'arm'\?"):
        vocabulary_blocks(("iafm", "amr"), [OPEN])


def test_the_specs_of_a_config_are_ordered_by_name_actions_before_states():
    domains = {"b": DomainConfig(action_spec=LANGUAGE_TABLE.to_dict()), "c": DomainConfig(),
               "a": DomainConfig(action_spec=OPEN, state_spec=STATE)}
    assert DataConfig(domains=domains).declared_specs == [OPEN, STATE, LANGUAGE_TABLE.to_dict()]
