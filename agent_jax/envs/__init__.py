"""Simulators behind one interface: gymnasium's, plus an instruction, an expert and random baselines.

An environment is one module of this folder, and the only file that imports its simulator. It is imported on demand:

    module = load("babyai")
    environment = module.make("GoToLocal", image_size=56)
    observation, info = environment.reset(seed=7)        # {"rgb": uint8 (size, size, 3)}, {"success": False}
    expert = module.Expert(environment)
    observation, reward, terminated, truncated, info = environment.step(expert.act())

Observations and actions are dicts of arrays or numbers; an action's keys are those of the module's `ACTION_SPEC`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

Observation = dict[str, np.ndarray]
Action = Mapping[str, Any]  # one time step's value of an ActionSpec

_MODULES = {"babyai": "agent_jax.envs.babyai"}  # name in a config -> module; its simulator is imported with it


class Environment(Protocol):
    """One level of a simulator, one episode at a time."""

    level: str

    @property
    def instruction(self) -> str:
        """The task of the current episode, in words."""
        ...

    @property
    def max_steps(self) -> int:
        """Steps after which the current episode is cut off."""
        ...

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode that `seed` determines: the first observation, and info with `success` False."""
        ...

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated, and info with `success`, as in gymnasium."""
        ...


class Expert(Protocol):
    """A scripted solver with access to the simulator's state; made after `reset`, for one episode."""

    failed: bool  # the solver gave up: what it says from here on is idle

    def act(self, taken: Action | None = None) -> Action:
        """The action to take now.

        Args:
            taken: what was done in the step before, where it was not what the expert had said.
        """
        ...


class EnvironmentModule(Protocol):
    """What a module of this folder offers."""

    NAME: str
    ACTION_SPEC: Any  # agent_jax.actions.ActionSpec
    RANDOM: Mapping[str, Sequence[Action]]  # random baselines: name in the report -> the actions drawn from
    NOISE: Sequence[Action]  # what may be executed in the expert's place

    def make(self, level: str, image_size: int = 56) -> Environment:
        """An environment of the level; reset it before use."""
        ...

    def Expert(self, environment: Any) -> Expert:
        """The solver of the environment's current episode."""
        ...

    def version(self) -> str:
        """Name and version of the simulator: other versions make other episodes."""
        ...

    def action_name(self, action: Action) -> str:
        """The action in a word, for pictures."""
        ...


def load(name: str) -> EnvironmentModule:
    """The environment module of a config's `environment` field.

    Raises:
        ValueError: there is no such environment.
        ModuleNotFoundError: its simulator is not installed; the message says how to install it.
    """
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(map(repr, _MODULES))}"
        raise ValueError(f"environment: found {name!r}; {hint}")
    return cast(EnvironmentModule, importlib.import_module(_MODULES[name]))
