"""Checks and defaults that make an `EnvironmentModule` of the user's environment.

| required | |
|---|---|
| `ACTION_SPEC` | the action of `step` |
| `TASKS` | suites of tasks by name, the default one first: {"PushT": ("push-t",)} |
| `IMAGE_SIZE` | pixels of square images; 0: those of `IMAGE_SHAPES` |
| `make(task, image_size)` | an environment: `instruction`, `reset(seed=...)`, `step(action)`, `close()` |

Everything else has a default: one camera "rgb", no state, no expert, and uniform random actions as the baseline. Every
observation is checked, so that an error names its cause.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from agent_jax.actions.specs import ActionSpec, StateSpec
from agent_jax.envs import Action, Observation
from agent_jax.envs.random_actions import uniform_actions
from agent_jax.help_pages import help_page

_REQUIRED = {
    "ACTION_SPEC": "an ActionSpec: the action of step()",
    "TASKS": 'suites of tasks by name, e.g. {"PushT": ("push-t",)}',
    "IMAGE_SIZE": "pixels of its square images (0: those of IMAGE_SHAPES)",
    "make": "make(task, image_size) -> an environment",
}
_METHODS = {"reset": "reset(seed=...)", "step": "step(action)", "close": "close()"}
_MISSING = object()


class CustomModule:
    """The user's environment with the interface `EnvironmentModule`."""

    def __init__(self, reference: str, module: ModuleType, cls: type | None = None) -> None:
        """Check the interface and fill in the defaults.

        Args:
            reference: the user's name for it.
            module: the imported module.
            cls: a class of the module, whose attributes take precedence over the module's.

        Raises:
            ValueError: a part of the interface is missing, or has the wrong type.
        """
        self._reference, self._module, self._cls = reference, module, cls
        missing = [f"{name} ({what})" for name, what in _REQUIRED.items() if self._attribute(name) is _MISSING]
        if missing:
            raise ValueError(f"environment {reference!r} lacks {', '.join(missing)}; expected the whole "
                             "interface" + help_page("guides/environments.md", "Your own environment"))
        self.NAME: str = self._typed("NAME", _snake(cls.__name__ if cls else Path(str(module.__file__)).stem), str)
        self.ACTION_SPEC: ActionSpec = self._typed("ACTION_SPEC", None, ActionSpec)
        self.STATE_SPEC: StateSpec | None = self._typed("STATE_SPEC", None, StateSpec)
        self.STATE_SHAPES: Mapping[str, tuple[int, ...]] = self._typed("STATE_SHAPES", {}, Mapping)
        self.CAMERAS: tuple[str, ...] = tuple(self._typed("CAMERAS", ("rgb",), (tuple, list)))
        self.TASKS: Mapping[str, tuple[str, ...]] = self._typed("TASKS", None, Mapping)
        self.IMAGE_SIZE: int = self._typed("IMAGE_SIZE", 0, int)
        square = dict.fromkeys(self.CAMERAS if self.IMAGE_SIZE else (), (self.IMAGE_SIZE, self.IMAGE_SIZE, 3))
        self.IMAGE_SHAPES: Mapping[str, tuple[int, int, int]] = self._typed("IMAGE_SHAPES", square, Mapping)
        self.ONE_A_PROCESS: bool = self._typed("ONE_A_PROCESS", False, bool)
        self.HAS_EXPERT: bool = self._typed("HAS_EXPERT", self._attribute("Expert") is not _MISSING, bool)
        self._check_values()
        uniform = uniform_actions(self.ACTION_SPEC)
        self.RANDOM: Mapping[str, Sequence[Action]] = self._typed("RANDOM", {"random": uniform}, Mapping)
        self.NOISE: Sequence[Action] = self._typed("NOISE", next(iter(self.RANDOM.values()), uniform), (tuple, list))
        # Optional functions (instructions.py): an attribute that is missing stays missing.
        if callable(paraphrase := self._attribute("paraphrase")):
            self.paraphrase = paraphrase
        for name in ("contradict", "goal_of"):
            if callable(given := self._attribute(name)):
                setattr(self, name, lambda environment, value, given=given: given(environment.inner, value))

    def make(self, level: str, image_size: int = 0) -> CheckedEnvironment:
        """Make an environment of a task; image_size 0: `IMAGE_SIZE`.

        Raises:
            ValueError: the constructor fails, or its object lacks a method.
        """
        where = f"environment {self._reference!r}, task {level!r}"
        make, size = self._attribute("make"), image_size or self.IMAGE_SIZE
        call = f"{getattr(make, '__name__', 'make')}({level!r}, {size})"
        try:
            made = make(level, size)
        except Exception as error:
            raise ValueError(f"{where}: {call} failed: {describe_error(error)}") from error
        missing = [what for name, what in _METHODS.items() if not callable(getattr(made, name, None))]
        if missing:
            raise ValueError(f"{where}: {call} returned a {type(made).__name__}, which lacks {', '.join(missing)}")
        shapes = {camera: (size, size, 3) if size else self.IMAGE_SHAPES[camera] for camera in self.CAMERAS}
        states = {key: shape for key, (shape, _) in self.STATE_SPEC.fields.items()} if self.STATE_SPEC else {}
        return CheckedEnvironment(made, level, where, shapes, {**self.STATE_SHAPES, **states})

    def Expert(self, environment: CheckedEnvironment) -> Any:
        """The user's expert for the user's environment.

        Raises:
            ValueError: the user's environment has no expert.
        """
        if not self.HAS_EXPERT:
            raise ValueError(f"environment {self._reference!r} has no Expert")
        return self._attribute("Expert")(environment.inner)

    def version(self) -> str:
        """The user's version, or the name with a digest of the source file, since an edit may change the episodes."""
        if (given := self._attribute("version")) is not _MISSING:
            return str(given())
        source = Path(str(self._module.__file__)).read_bytes()
        return f"{self.NAME} ({hashlib.sha256(source).hexdigest()[:10]})"

    def action_name(self, action: Action) -> str:
        """The user's text, or the numbers of the action."""
        if (given := self._attribute("action_name")) is not _MISSING:
            return str(given(action))
        return ", ".join(f"{key} {np.array2string(np.asarray(value), precision=3)}" for key, value in action.items())

    def _attribute(self, name: str) -> Any:
        """An attribute of the class, else of the module; without a method `make`, the class is `make`."""
        if self._cls is not None:
            if inspect.getattr_static(self._cls, name, _MISSING) is not _MISSING:
                return getattr(self._cls, name)
            if name == "make":
                return self._cls
        return getattr(self._module, name, _MISSING)

    def _typed(self, name: str, default: Any, types: Any) -> Any:
        value = self._attribute(name)
        if value is _MISSING or (value is None and default is None and name == "STATE_SPEC"):
            return default
        if not isinstance(value, types):
            expected = " or ".join(kind.__name__ for kind in (types if isinstance(types, tuple) else (types,)))
            hint = f"; make one with {expected}.from_dict({name})" if expected.endswith("Spec") and isinstance(
                value, dict) else ""
            raise ValueError(f"environment {self._reference!r}: {name} is a {type(value).__name__}, expected {expected}"
                             f"{hint}")
        return value

    def _check_values(self) -> None:
        where, tasks = f"environment {self._reference!r}", self.TASKS
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.NAME):
            raise ValueError(f"{where}: NAME={self.NAME!r}: expected small letters, digits and '_', as in the "
                             "names of data sets")
        if not tasks or not all(isinstance(names, (tuple, list)) and names for names in tasks.values()):
            raise ValueError(f"{where}: TASKS={dict(tasks)}: expected {_REQUIRED['TASKS']}")
        without = [name for name in self.CAMERAS if not self.IMAGE_SHAPES.get(name)]
        if not self.IMAGE_SIZE and without:
            raise ValueError(f"{where}: IMAGE_SIZE is 0 and IMAGE_SHAPES has no {', '.join(without)}; expected "
                             "(height, width, 3) for each of CAMERAS")


class CheckedEnvironment:
    """The user's environment, with a check of everything it returns."""

    def __init__(self, inner: Any, level: str, where: str, shapes: Mapping[str, tuple[int, ...]],
                 states: Mapping[str, tuple[int, ...]]) -> None:
        """Wrap the user's environment.

        Args:
            inner: the user's object.
            level: its task.
            where: the beginning of every message.
            shapes: shapes of the images, by camera.
            states: shapes of the state, by key.
        """
        self.inner, self.level = inner, level
        self._where, self._shapes, self._states = where, shapes, states

    @property
    def instruction(self) -> str:
        """The user's instruction of the current episode."""
        found = getattr(self.inner, "instruction", None)
        if not isinstance(found, str) or not found.strip():
            raise ValueError(f"{self._where}: found instruction {found!r}, expected a text with the task")
        return found

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode of `seed`."""
        found = self.inner.reset(seed=seed)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(f"{self._where}: reset() returned {_kind(found)}, expected (observation, info)")
        return self._observation(found[0], "reset"), {"success": False, **(found[1] or {})}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take an action."""
        found = self.inner.step(action)
        if not isinstance(found, tuple) or len(found) != 5:
            raise ValueError(f"{self._where}: step() returned {_kind(found)}, expected (observation, reward, "
                             "terminated, truncated, info)")
        observation, reward, terminated, truncated, info = found
        if not isinstance(info, Mapping) or "success" not in info:
            keys = ", ".join(map(str, info)) if isinstance(info, Mapping) else _kind(info)
            raise ValueError(f"{self._where}: step()'s info has no 'success', only {keys or 'nothing'}; expected "
                             "info['success'], whether the task is done")
        return self._observation(observation, "step"), float(reward), bool(terminated), bool(truncated), dict(info)

    def close(self) -> None:
        """Close the user's environment."""
        self.inner.close()

    def _observation(self, found: Any, method: str) -> Observation:
        if not isinstance(found, Mapping):
            raise ValueError(f"{self._where}: {method}() observed {_kind(found)}, expected a mapping with "
                             f"{', '.join((*self._shapes, *self._states))}")
        observation = {}
        for name, shape in {**self._shapes, **self._states}.items():
            value = np.asarray(found.get(name))
            image = name in self._shapes
            fits = value.dtype == np.uint8 if image else value.dtype.kind in "biuf"
            if not fits or value.shape != tuple(shape):
                what = f"{value.dtype}{list(value.shape)}" if name in found else "nothing"
                raise ValueError(f"{self._where}: {method}() observed {name!r} as {what}, expected "
                                 f"{'uint8' if image else 'numbers '}{list(shape)}; it observed "
                                 f"{', '.join(map(str, found)) or 'nothing'}")
            observation[name] = value
        return observation


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _snake(name: str) -> str:
    """PushT -> push_t."""
    return re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()


def describe_error(error: Exception) -> str:
    """An error of the user's code in one line, with file and line."""
    # The message of a SyntaxError has its file and line.
    frames = () if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)
    location = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{location}"
