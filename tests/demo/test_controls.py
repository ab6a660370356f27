"""Controls of the page for every kind of action."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent_jax.actions import BABYAI, BLEEDING_EDGE, LANGUAGE_TABLE, MINECRAFT
from agent_jax.actions.simulators import METAWORLD, VIZDOOM
from agent_jax.actions.specs import ActionSpec
from agent_jax.demo.controls import action_of, controls_of


def module_of(spec: ActionSpec) -> Any:
    return SimpleNamespace(ACTION_SPEC=spec, action_name=lambda action: f"name {action['action']}")


@pytest.mark.parametrize("spec", [BABYAI, LANGUAGE_TABLE, MINECRAFT, BLEEDING_EDGE, METAWORLD, VIZDOOM])
def test_controls_make_every_part_of_an_action(spec: ActionSpec):
    values: dict[str, Any] = {}
    for control in controls_of(module_of(spec)):
        if control["kind"] == "choice":
            value = control["options"][-1]["value"]
        elif control["kind"] == "buttons":
            value = [1] * len(control["labels"])
        else:
            value = control["high"]
        if control["index"] is None:
            values[control["key"]] = value
        else:
            values.setdefault(control["key"], {})[control["index"]] = value
    values = {key: [found[i] for i in range(len(found))] if isinstance(found, dict) else found
              for key, found in values.items()}
    action = action_of(spec, values)
    for key, (shape, dtype) in spec.fields.items():
        assert action[key].shape == tuple(shape)
        assert action[key].dtype == dtype
        low, high = spec.bounds(key)
        assert np.all(action[key] <= high + 1e-6)
        assert np.all(action[key] >= low - 1e-6)


def test_a_choice_alone_has_the_names_of_the_environment():
    (control,) = controls_of(module_of(BABYAI))
    assert [option["label"] for option in control["options"]][:2] == ["name 0", "name 1"]


@pytest.mark.parametrize("values", [None, {}, {"action": [0.0]}, {"action": [0.0, "x"]}, {"action": [0.0, None]},
                                    {"action": [0.0, float("nan")]}, {"action": [0, 0], "other": 1}])
def test_wrong_actions_are_refused_by_name(values: Any):
    with pytest.raises(ValueError, match="action"):
        action_of(LANGUAGE_TABLE, values)
