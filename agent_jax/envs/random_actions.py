"""Tables of random actions of any spec, for baselines and noise."""

from __future__ import annotations

import numpy as np

from agent_jax.actions import ActionSpec, Buttons, Choice
from agent_jax.envs import Action

TABLE = 4096  # actions: enough that drawing from the table equals drawing a new action


def uniform_actions(spec: ActionSpec, count: int = TABLE, seed: int = 0) -> tuple[Action, ...]:
    """`count` actions: numbers uniform within the bounds, buttons down with probability 0.5, uniform choices."""
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
