"""What a person can do in an environment: the parts of its ActionSpec as controls of the page, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agent_jax.actions.controls import Buttons
from agent_jax.actions.parts import Choice
from agent_jax.actions.specs import ActionSpec
from agent_jax.envs import EnvironmentModule


def controls_of(module: EnvironmentModule) -> list[dict[str, Any]]:
    """The controls, as JSON.

    Returns:
        One for each component of an action: {"kind": "choice", "key", "index", "options": [{"value", "label"}]},
        {"kind": "buttons", "key", "index", "labels"}, or {"kind": "axis", "key", "index", "low", "high", "label"}.
    """
    found: list[dict[str, Any]] = []
    parts = module.ACTION_SPEC.parts
    for part in parts:
        if isinstance(part, Choice):
            alone = len(parts) == 1 and part.index is None
            options = [{"value": value, "label": module.action_name({part.key: value}) if alone else token}
                       for value, token in zip(part.values or range(len(part.tokens)), part.tokens, strict=True)]
            found.append({"kind": "choice", "key": part.key, "index": part.index, "options": options})
        elif isinstance(part, Buttons):
            found.append({"kind": "buttons", "key": part.key, "index": None, "labels": part.names})
        else:
            names = [name.strip() for name in getattr(part, "name", "").split(",")]
            for number, (low, high) in enumerate(part.limits):
                name = names[number] if len(names) == len(part.limits) and names[number] else part.place
                found.append({"kind": "axis", "key": part.key, "low": low, "high": high, "label": name,
                              "index": number if part.index is None and len(part.limits) > 1 else part.index})
    return found


def action_of(spec: ActionSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """The action that the page sent, of the spec's shapes and types.

    Raises:
        ValueError: a missing or an unknown key, or values of another shape or type.
    """
    if not isinstance(values, Mapping) or values.keys() != spec.fields.keys():
        raise ValueError(f"action: found {sorted(values) if isinstance(values, Mapping) else values!r}, expected the "
                         f"keys {', '.join(spec.fields)}")
    action = {}
    for key, (shape, dtype) in spec.fields.items():
        try:
            array = np.asarray(values[key], np.float64)
        except (TypeError, ValueError):
            array = None
        if array is None or array.shape != tuple(shape) or not np.isfinite(array).all():
            raise ValueError(f"action: {key} is {values[key]!r:.80}, expected finite numbers of shape {tuple(shape)}")
        action[key] = array.astype(dtype)
    return action
