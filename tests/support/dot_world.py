"""An environment of a user: a dot on a line of cells must reach the cell named in the instruction."""

from __future__ import annotations

from typing import Any

import numpy as np

from agent_jax.actions import BABYAI

CELLS = 5
ACTION_SPEC = BABYAI  # 0: left, 1: right; other actions do nothing
TASKS = {"Dots": ("reach", "stay")}
IMAGE_SIZE = 20


class DotWorld:
    """One task; observations are {"rgb": uint8 (size, size, 3)}."""

    ACTION_SPEC = BABYAI
    TASKS = TASKS

    def __init__(self, task: str, size: int) -> None:
        if task not in TASKS["Dots"]:
            raise KeyError(task)
        self.task, self.size = task, size
        self.place = self.target = self.steps = 0
        self.instruction = ""

    def reset(self, *, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        random = np.random.default_rng(seed)
        self.place, self.target = (int(cell) for cell in random.choice(CELLS, 2, replace=False))
        self.steps, self.instruction = 0, f"go to cell {self.target}"
        return self._seen(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        move = {0: -1, 1: 1}.get(int(action["action"]), 0)
        self.place = min(max(self.place + move, 0), CELLS - 1)
        self.steps += 1
        success = self.place == self.target
        return self._seen(), float(success), success, self.steps >= 12, {"success": success}

    def close(self) -> None:
        pass

    def _seen(self) -> dict[str, Any]:
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        width = self.size // CELLS
        picture[:, self.place * width : (self.place + 1) * width] = 255
        return {"rgb": picture, "unused": "text"}


make = DotWorld


class Expert:
    """Walks to the cell."""

    failed = False

    def __init__(self, environment: DotWorld) -> None:
        self.environment = environment

    def act(self, taken: Any = None) -> dict[str, Any]:
        return {"action": np.int64(0 if self.environment.target < self.environment.place else 1)}
