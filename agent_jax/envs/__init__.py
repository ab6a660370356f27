"""Simulators behind one interface: gymnasium's, plus an instruction, an expert and random baselines.

An environment is one module of this folder, the only one that imports its simulator, or a module of the user
(`custom.py`). It is imported on demand:

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

import contextlib
import difflib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

from agent_jax.actions.specs import ActionSpec, StateSpec
from agent_jax.runtime.extras import install

Observation = dict[str, np.ndarray]
Action = Mapping[str, Any]  # one time step's value of an ActionSpec

# Name in a config -> module; its simulator is imported with it.
_MODULES = {name: f"agent_jax.envs.{name}" for name in ("babyai", "metaworld", "vizdoom", "language_table", "calvin",
                                                         "libero")}  # fmt: skip
NAMES = tuple(_MODULES)
CLIPS = "clips"  # made-up clips (clips.py): gathered like demonstrations, but no environment


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

        If an episode is a chain of instructions, each given when the one before it is completed, info also has
        `completed` and `instructions`: how many are completed, and how many there are.
        """
        ...

    def close(self) -> None:
        """Release the simulator; the environment cannot be used afterwards."""
        ...


class Expert(Protocol):
    """A scripted solver with access to the simulator's state; made after `reset`, for one episode."""

    failed: bool  # the solver gave up: its actions from here on do nothing

    def act(self, taken: Action | None = None) -> Action:
        """The next action.

        Args:
            taken: the action executed in the previous step, if it was not the expert's.
        """
        ...


class EnvironmentModule(Protocol):
    """The interface of an environment module."""

    NAME: str
    ACTION_SPEC: ActionSpec
    STATE_SPEC: StateSpec | None  # of the observation's numbers; None: no state, or one described by STATE_SHAPES
    STATE_SHAPES: Mapping[str, tuple[int, ...]]  # by key, of a state whose StateSpec comes with the data
    CAMERAS: tuple[str, ...]  # keys of an observation's images, "rgb" first
    TASKS: Mapping[str, tuple[str, ...]]  # suites of tasks by name, the default one first; `make` may know more tasks
    IMAGE_SIZE: int  # default side of square images, in pixels; 0: images have IMAGE_SHAPES
    IMAGE_SHAPES: Mapping[str, tuple[int, int, int]]  # the simulator's own image shapes, by camera
    ONE_A_PROCESS: bool  # a process cannot have two environments at once
    HAS_EXPERT: bool
    # Random actions are drawn from tables, whatever their kind; random_actions.py makes the tables of numbers.
    RANDOM: Mapping[str, Sequence[Action]]  # random baselines: name in the report -> the actions to draw from
    NOISE: Sequence[Action]  # actions that may replace the expert's

    def make(self, level: str, image_size: int = ...) -> Environment:
        """Make an environment of the level (or task); reset it before use.

        Raises:
            ValueError: an unknown level, or an image size that is not possible.
            FileNotFoundError: files of the simulator are missing.
            RuntimeError: `ONE_A_PROCESS`, and another environment is open.
        """
        ...

    def Expert(self, environment: Any) -> Expert:
        """The solver of the environment's current episode.

        Raises:
            ValueError: `HAS_EXPERT` is False.
        """
        ...

    def version(self) -> str:
        """The simulator's name and version. Another version can make other episodes from the same seed."""
        ...

    def action_name(self, action: Action) -> str:
        """A short text for the action, to draw on images."""
        ...


def image_shapes(module: EnvironmentModule, image_size: int) -> dict[str, tuple[int, int, int]]:
    """(height, width, 3) of the images that `module.make(..., image_size)` observes, by camera."""
    square = (image_size, image_size, 3)
    return {camera: square if image_size else module.IMAGE_SHAPES[camera] for camera in module.CAMERAS}


def tasks_of(module: EnvironmentModule, names: Sequence[str]) -> tuple[str, ...]:
    """Expand suites to their tasks and keep other names; each task once."""
    return tuple(dict.fromkeys(task for name in names for task in module.TASKS.get(name, (name,))))


@contextlib.contextmanager
def requires(environment: str, *packages: str) -> Iterator[None]:
    """Name the install command if the import of one of these packages fails, for the imports of an environment module.

    Raises:
        ModuleNotFoundError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in packages:
            raise
        raise ModuleNotFoundError(f'the environment "{environment}" needs {error.name}, which is not installed: '
                                  f"{install(environment)}", name=error.name) from error


def load(name: str) -> EnvironmentModule:
    """The environment module of a config's `environment` field, or of a command's `--env`.

    Args:
        name: one of `NAMES`, or the user's own module, file, or class in either (`custom.py`). It is imported, so it
            must come from the user, never from a data set or a checkpoint.

    Raises:
        ValueError: unknown environment, `CLIPS`, or the user's environment lacks a part of the interface.
        ModuleNotFoundError: the simulator is not installed; the message has the command that installs it.
        FileNotFoundError: the file is missing, or the checkout of the simulator is; the message says what to clone
            and which variable to set.
    """
    if name in _MODULES:
        return cast(EnvironmentModule, importlib.import_module(_MODULES[name]))
    if name == CLIPS:
        raise ValueError(f"environment: found {CLIPS!r}, made-up clips in which nothing acts; expected one of "
                         f"{', '.join(map(repr, _MODULES))}, or your own; clips are for data sets only, "
                         "as config.data.domains.NAME.demonstrations.environment")
    from agent_jax.envs.custom import load_custom

    if name.isidentifier() and importlib.util.find_spec(name) is None:  # neither a path nor a module: a typo
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(map(repr, _MODULES))}"
        raise ValueError(f"environment: found {name!r}; {hint}; or your own, as MODULE, FILE.py or FILE.py:CLASS")
    return cast(EnvironmentModule, load_custom(name))
