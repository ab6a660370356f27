"""Random actions of any spec, as a table to draw from: baselines and noise for actions that cannot be listed."""

from __future__ import annotations

import numpy as np

from agent_jax.actions import ActionSpec, Buttons, Choice
from agent_jax.envs import Action

TABLE = 4096  # actions; a draw from so many is as good as a fresh one


def uniform_actions(spec: ActionSpec, count: int = TABLE, seed: int = 0) -> tuple[Action, ...]:
    """`count` actions: numbers uniform within the bounds, each button down half of the time, choices equally likely."""
    random = np.random.default_rng(seed)
    return tuple(_uniform_action(spec, random) for _ in range(count))


def _uniform_action(spec: ActionSpec, random: np.random.Generator) -> Action:
    action: dict[str, np.ndarray] = {}
    for key, (shape, dtype) in spec.fields.items():
        low, high = spec.bounds(key)
        value = np.asarray(random.uniform(low, high, shape))
        for part in spec.parts:
            if part.key == key and isinstance(part, Buttons):
                value = random.random(shape) < 0.5
            elif part.key == key and isinstance(part, Choice):
                value[() if part.index is None else part.index] = part.numbers[int(random.integers(len(part.numbers)))]
        action[key] = np.asarray(value).astype(dtype)
    return action
