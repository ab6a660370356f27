"""Simulators behind one interface: gymnasium's, plus an instruction, an expert and random baselines.

An environment is one module of this folder, and the only file that imports its simulator, or one of the user's own
(`own.py`). It is imported on demand:

    module = load("babyai")
    environment = module.make("GoToLocal", image_size=56)
    observation, info = environment.reset(seed=7)        # {"rgb": uint8 (size, size, 3)}, {"success": False}
    expert = module.Expert(environment)
    observation, reward, terminated, truncated, info = environment.step(expert.act())
    environment.close()

Observations and actions are dicts of arrays or numbers: an observation holds one image for each of the module's
`CAMERAS` and the keys of its `STATE_SPEC` or `STATE_SHAPES`, an action the keys of its `ACTION_SPEC`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

from agent_jax.actions.specs import ActionSpec, StateSpec

Observation = dict[str, np.ndarray]
Action = Mapping[str, Any]  # one time step's value of an ActionSpec

# Name in a config -> module; its simulator is imported with it.
_MODULES = {name: f"agent_jax.envs.{name}" for name in ("babyai", "metaworld", "vizdoom", "language_table", "calvin",
                                                         "libero")}  # fmt: skip
NAMES = tuple(_MODULES)


class Environment(Protocol):
    """One level of a simulator, one episode at a time."""

    level: str

    @property
    def instruction(self) -> str:
        """The task of the current episode, in words."""
        ...

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode that `seed` determines: the first observation, and info with `success` False."""
        ...

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated, and info with `success`, as in gymnasium.

        Where an episode is a chain of instructions, of which each comes when the one before it is carried out, info
        also has `completed` and `instructions`: how many were, and how many there are.
        """
        ...

    def close(self) -> None:
        """Let go of the simulator; the environment is of no use afterwards."""
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
    ACTION_SPEC: ActionSpec
    STATE_SPEC: StateSpec | None  # of the numbers in an observation; None: there are none, or those of STATE_SHAPES
    STATE_SHAPES: Mapping[str, tuple[int, ...]]  # of numbers whose StateSpec comes with the data, by key
    CAMERAS: tuple[str, ...]  # keys of an observation's images, "rgb" first
    TASKS: Mapping[str, tuple[str, ...]]  # suites of tasks, by name, the usual one first; `make` may know more tasks
    IMAGE_SIZE: int  # pixels of square pictures where nothing else is asked for; 0: those of IMAGE_SHAPES
    IMAGE_SHAPES: Mapping[str, tuple[int, int, int]]  # of the simulator's own pictures, by camera
    ONE_A_PROCESS: bool  # a process cannot have two environments at once
    HAS_EXPERT: bool
    # Draws are from tables, so that actions of any kind are drawn alike: random_actions.py makes those of numbers.
    RANDOM: Mapping[str, Sequence[Action]]  # random baselines: name in the report -> the actions drawn from
    NOISE: Sequence[Action]  # what may be executed in the expert's place

    def make(self, level: str, image_size: int = ...) -> Environment:
        """An environment of the level (or task); reset it before use."""
        ...

    def Expert(self, environment: Any) -> Expert:
        """The solver of the environment's current episode.

        Raises:
            ValueError: there is none (`HAS_EXPERT` is False).
        """
        ...

    def version(self) -> str:
        """Name and version of the simulator: other versions make other episodes."""
        ...

    def action_name(self, action: Action) -> str:
        """The action in a word, for pictures."""
        ...


def image_shapes(module: EnvironmentModule, image_size: int) -> dict[str, tuple[int, int, int]]:
    """Height, width, 3 of the pictures that `module.make(..., image_size)` observes, by camera."""
    square = (image_size, image_size, 3)
    return {camera: square if image_size else module.IMAGE_SHAPES[camera] for camera in module.CAMERAS}


def tasks_of(module: EnvironmentModule, names: Sequence[str]) -> tuple[str, ...]:
    """The tasks that names stand for, once each: a suite for all of its tasks, another name for itself."""
    return tuple(dict.fromkeys(task for name in names for task in module.TASKS.get(name, (name,))))


def load(name: str) -> EnvironmentModule:
    """The environment module of a config's `environment` field, or of a command's `--env`.

    Args:
        name: one of `NAMES`, or an environment of the user's own: a module, a file, or a class in either, as `own.py`
            has them. It is imported, so it has to come from the user, not from a data set or a checkpoint.

    Raises:
        ValueError: there is no such environment, or one of the user's lacks a part of the interface.
        ModuleNotFoundError: its simulator is not installed; the message says how to install it.
        FileNotFoundError: its simulator is a checkout of one's own that is not where it should be; the message says
            from where to get it and where to point. Or there is no such file.
    """
    if name in _MODULES:
        return cast(EnvironmentModule, importlib.import_module(_MODULES[name]))
    from agent_jax.envs.own import load_own

    if name.isidentifier() and importlib.util.find_spec(name) is None:  # no path and no module: a slip of the keys
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(map(repr, _MODULES))}"
        raise ValueError(f"environment: found {name!r}; {hint}; or one of your own, as MODULE, FILE.py or "
                         "FILE.py:CLASS")
    return cast(EnvironmentModule, load_own(name))


def try_out(module: EnvironmentModule, task: str, image_size: int = 0) -> None:
    """Take one step in an environment of the user's own; the package's have been tried.

    Raises:
        ValueError: its constructor fails, or it returns what it should not.
    """
    from agent_jax.envs.own_interface import OwnModule

    if isinstance(module, OwnModule):
        module.try_out(task, image_size)


def same(one: str, other: str) -> bool:
    """Whether two names are of one environment."""
    from agent_jax.envs.own import identity

    return identity(one) == identity(other)
