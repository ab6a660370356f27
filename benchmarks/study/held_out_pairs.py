"""BabyAI's GoToLocal with pairs of colour and kind held out: an environment of the transfer study.

    GoToLocalS8N2-known    missions that name one of 12 pairs, such as "go to the red box"
    GoToLocalS8N2-new      missions that name one of the other 6, such as "go to the red ball"

Each colour is held out with one kind and each kind with two colours, so that known missions name every colour and every
kind. Objects of all pairs lie in the rooms of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agent_jax.envs import Observation, babyai
from agent_jax.envs.babyai import (  # noqa: F401 (the interface of an environment)
    ACTION_SPEC,
    IMAGE_SIZE,
    NAME,
    NOISE,
    RANDOM,
    Expert,
    action_name,
    contradict,
    goal_of,
    paraphrase,
)

HELD_OUT = {"red ball", "green box", "blue key", "purple ball", "yellow box", "grey key"}
KNOWN, NEW = "-known", "-new"
TASKS = {"GoToLocal": tuple(f"GoToLocalS{size}N2{part}" for size in (5, 6, 8) for part in (KNOWN, NEW))}


class HeldOutPairs(babyai.BabyAI):
    """A level of BabyAI whose missions are of one part."""

    def __init__(self, level: str, image_size: int = IMAGE_SIZE) -> None:
        """Raises ValueError for a name that does not end in "-known" or "-new"."""
        name, dash, part = level.rpartition("-")
        if dash + part not in (KNOWN, NEW):
            raise ValueError(f"level: found {level!r}, expected a level of BabyAI followed by {KNOWN} or {NEW}")
        super().__init__(name, image_size)
        self.level, self._new = level, dash + part == NEW

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin the first episode of the part among those drawn from `seed`."""
        draws = np.random.Generator(np.random.PCG64(seed))
        while True:
            begun = super().reset(seed=int(draws.integers(2**31)))
            if (" ".join(self.instruction.split()[-2:]) in HELD_OUT) == self._new:
                return begun


make = HeldOutPairs


def version() -> str:
    """The simulator's name and version, and that of these parts."""
    return f"{babyai.version()}, pairs held out 1"
