"""The simulators of one process, in this one or in a worker: episodes step by step, or whole.

    begin(place, task, seed) -> Seen    step(place, action) -> Seen             a policy elsewhere chooses the actions
    play(task, seed, who) -> Seen       replay(task, seed, actions) -> Seen     a whole episode: its end

What goes in and comes out is plain: numbers, texts and arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.actions.specs import TERMINAL_KEY
from agent_jax.envs import Action, Environment, load

EXPERT = "bot"  # name of the environment's expert among the baselines


@dataclasses.dataclass(frozen=True)
class EpisodeStatus:
    """What an episode shows after its reset or a step."""

    observation: Mapping[str, np.ndarray]  # images and state by key; {} at the end of a whole episode
    instruction: str
    steps: int  # taken so far
    over: bool
    success: bool
    chain: tuple[int, int] | None = None  # instructions carried out, and of how many; None: the episode has one


class SimulatorPool:
    """Environments of one module, each in a place of its own; made when a task is first begun there, and kept."""

    def __init__(self, environment: str, image_size: int = 0, keys: Sequence[str] = ()) -> None:
        """Of an environment module, by its name.

        Args:
            environment: of a config.
            image_size: pixels of the observations; 0: the module's own default.
            keys: of the observation to keep; none: all.

        Raises:
            ValueError, ModuleNotFoundError: as `envs.load`.
        """
        self.module = load(environment)
        self._image_size, self._keys = image_size, tuple(keys)
        self._environments: dict[int, tuple[str, Environment]] = {}
        self._last: dict[int, EpisodeStatus] = {}

    def begin(self, place: int, task: str, seed: int) -> EpisodeStatus:
        """Begin the episode of a seed; whatever ran in this place is over."""
        found = self._environments.get(place)
        if found is None or found[0] != task:
            ended = self._environments.keys() if self.module.ONE_A_PROCESS else self._environments.keys() & {place}
            for other in list(ended):
                self._environments.pop(other)[1].close()
            found = self._environments[place] = task, make(self.module, task, self._image_size)
        observation, info = found[1].reset(seed=seed)
        return self._seen(place, observation, info, steps=0, over=False)

    def step(self, place: int, action: Action) -> EpisodeStatus:
        """Take one action in a place; one that says that the episode is over ends it as it stands."""
        last = self._last[place]
        if action.get(TERMINAL_KEY, False):
            return dataclasses.replace(last, steps=last.steps + 1, over=True)
        observation, _, terminated, truncated, info = self._environments[place][1].step(action)
        return self._seen(place, observation, info, steps=last.steps + 1, over=terminated or truncated)

    def play(self, task: str, seed: int, who: str, stream: Sequence[int]) -> EpisodeStatus:
        """A whole episode of a baseline.

        Args:
            task: of the environment.
            seed: of the episode.
            who: "bot", the environment's expert, or a name of the module's `RANDOM`.
            stream: what seeds the random actions.
        """
        seen = self.begin(_WHOLE, task, seed)
        environment = self._environments[_WHOLE][1]
        if who == EXPERT:
            act = self.module.Expert(environment).act
        else:
            actions, random = self.module.RANDOM[who], np.random.default_rng(stream)
            act = lambda: actions[int(random.integers(len(actions)))]  # noqa: E731
        while not seen.over:
            seen = self.step(_WHOLE, act())
        return dataclasses.replace(seen, observation={})

    def replay(self, task: str, seed: int, actions: Mapping[str, np.ndarray]) -> EpisodeStatus:
        """A whole episode of given actions, each key of which has a row a step; ends with them, or earlier."""
        seen = self.begin(_WHOLE, task, seed)
        for row in range(len(next(iter(actions.values())))):
            seen = self.step(_WHOLE, {key: values[row] for key, values in actions.items()})
            if seen.over:
                break
        return dataclasses.replace(seen, observation={}, over=True)

    def close(self) -> None:
        """Let go of the simulators."""
        for _, environment in self._environments.values():
            environment.close()
        self._environments = {}

    def _seen(self, place: int, observation: Mapping[str, Any], info: Mapping[str, Any], *, steps: int, over: bool
              ) -> EpisodeStatus:
        kept = {key: np.asarray(value) for key, value in observation.items() if not self._keys or key in self._keys}
        instruction = self._environments[place][1].instruction
        several = info.get("instructions", 1) > 1
        chain = (int(info["completed"]), int(info["instructions"])) if several else None
        self._last[place] = EpisodeStatus(kept, instruction, steps, over=bool(over),
                                          success=bool(info["success"]), chain=chain)
        return self._last[place]


_WHOLE = -1  # the place of whole episodes


def make(module: Any, task: str, image_size: int) -> Environment:
    """An environment of a task, with images of `image_size` pixels or, if that is 0, the module's default."""
    return module.make(task, image_size) if image_size else module.make(task)
