"""What a person did in episodes, as a data set in the canonical store.

    DIRECTORY/0001/, then 0002/ with one episode more, ...

A store is complete when it appears, so each episode writes them all again under the next number, and the store before
it is removed afterwards: a process that is killed loses no finished episode.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_jax.data.store.writer import write_store
from agent_jax.envs import EnvironmentModule
from agent_jax.envs.workers.demonstration_worker import demonstration_features

AGENT_WEIGHT, PERSON_WEIGHT = 0.0, 1.0  # of a step in the action loss: the agent's are history alone


class Demonstrations:
    """The episodes of one session in one environment."""

    def __init__(self, directory: Path, module: EnvironmentModule, image_size: int) -> None:
        """Begin without episodes; `directory` is made with the first one."""
        self._directory, self._module, self._image_size = directory, module, image_size
        self._records: list[dict[str, Any]] = []
        self.path: Path | None = None  # of the store

    @property
    def episodes(self) -> int:
        """How many are stored."""
        return len(self._records)

    @property
    def steps(self) -> int:
        """How many of their steps were the person's."""
        return sum(step["action_weight"] > 0 for record in self._records for step in record["steps"])

    def add(self, task: str, seed: int, instruction: str, steps: Sequence[Mapping[str, Any]]) -> Path:
        """Store an episode.

        Args:
            task: of the environment.
            seed: of the episode.
            instruction: that the agent read.
            steps: each with `observation`, the values of its action, `action_weight` and `reward`.

        Returns:
            The directory of the data set with all episodes so far.
        """
        name = f"{task}/{seed}/{len(self._records)}"
        last = len(steps) - 1
        marked = [{**step, "is_first": not number, "is_last": number == last,
                   "is_terminal": number == last and step["reward"] > 0} for number, step in enumerate(steps)]
        self._records.append({"episode_id": name, "recording_id": name, "start": 0, "instruction": instruction,
                              "steps": marked})
        module, old = self._module, self.path
        features = demonstration_features(module, self._image_size)
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{len(self._records):04}"
        state = module.STATE_SPEC.to_dict() if module.STATE_SPEC else {}
        write_store(path, module.NAME, features, {"train": self._records}, {
            "action_spec": module.ACTION_SPEC.to_dict(), "state_spec": state,
            "demo": {"environment": module.NAME, "simulator": module.version(), "episodes": len(self._records),
                     "written": datetime.datetime.now(datetime.UTC).isoformat()}})
        self.path = path
        if old is not None:
            shutil.rmtree(old)
        return path
