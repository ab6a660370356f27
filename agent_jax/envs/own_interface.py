"""The interface of `EnvironmentModule`, checked and filled in for an environment of one's own.

| needed | |
|---|---|
| `ACTION_SPEC` | what `step` takes |
| `TASKS` | suites of tasks by name, the usual one first: {"PushT": ("push-t",)} |
| `IMAGE_SIZE` | pixels of square pictures; 0: those of `IMAGE_SHAPES` |
| `make(task, image_size)` | an environment: `instruction`, `reset(seed=...)`, `step(action)`, `close()` |

All else has a default: one camera "rgb", no state, no expert, and uniform random actions as the baseline. What an
environment shows is checked at every step, so that a mistake is named where it is made.
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

_NEEDED = {
    "ACTION_SPEC": "an ActionSpec: what step() takes",
    "TASKS": 'suites of tasks by name, as {"PushT": ("push-t",)}',
    "IMAGE_SIZE": "pixels of its square pictures (0: those of IMAGE_SHAPES)",
    "make": "make(task, image_size) -> an environment",
}
_METHODS = {"reset": "reset(seed=...)", "step": "step(action)", "close": "close()"}
_MISSING = object()


class OwnModule:
    """An environment module of the user's, with all that `EnvironmentModule` has."""

    def __init__(self, reference: str, module: ModuleType, holder: type | None = None) -> None:
        """Of a module, or of a class in it.

        Args:
            reference: how the user names it.
            module: as imported.
            holder: the class, whose attributes come before the module's.

        Raises:
            ValueError: a part of the interface is missing, or is of another type.
        """
        self._reference, self._module, self._holder = reference, module, holder
        missing = [f"{name} ({what})" for name, what in _NEEDED.items() if self._found(name) is _MISSING]
        if missing:
            raise ValueError(f"environment {reference!r} lacks {', '.join(missing)}; docs/guides/environments.md has "
                             "the interface and an example")
        self.NAME: str = self._of("NAME", _snake(holder.__name__ if holder else Path(str(module.__file__)).stem), str)
        self.ACTION_SPEC: ActionSpec = self._of("ACTION_SPEC", None, ActionSpec)
        self.STATE_SPEC: StateSpec | None = self._of("STATE_SPEC", None, StateSpec)
        self.STATE_SHAPES: Mapping[str, tuple[int, ...]] = self._of("STATE_SHAPES", {}, Mapping)
        self.CAMERAS: tuple[str, ...] = tuple(self._of("CAMERAS", ("rgb",), (tuple, list)))
        self.TASKS: Mapping[str, tuple[str, ...]] = self._of("TASKS", None, Mapping)
        self.IMAGE_SIZE: int = self._of("IMAGE_SIZE", 0, int)
        square = dict.fromkeys(self.CAMERAS if self.IMAGE_SIZE else (), (self.IMAGE_SIZE, self.IMAGE_SIZE, 3))
        self.IMAGE_SHAPES: Mapping[str, tuple[int, int, int]] = self._of("IMAGE_SHAPES", square, Mapping)
        self.ONE_A_PROCESS: bool = self._of("ONE_A_PROCESS", False, bool)
        self.HAS_EXPERT: bool = self._of("HAS_EXPERT", self._found("Expert") is not _MISSING, bool)
        self._check_values()
        uniform = uniform_actions(self.ACTION_SPEC)
        self.RANDOM: Mapping[str, Sequence[Action]] = self._of("RANDOM", {"random": uniform}, Mapping)
        self.NOISE: Sequence[Action] = self._of("NOISE", next(iter(self.RANDOM.values()), uniform), (tuple, list))

    def make(self, level: str, image_size: int = 0) -> CheckedEnvironment:
        """An environment of a task; image_size 0: `IMAGE_SIZE`.

        Raises:
            ValueError: the constructor fails, or what it makes lacks a method.
        """
        where = f"environment {self._reference!r}, task {level!r}"
        call = f"{getattr(self._maker(), '__name__', 'make')}({level!r}, {image_size or self.IMAGE_SIZE})"
        try:
            made = self._maker()(level, image_size or self.IMAGE_SIZE)
        except Exception as error:
            raise ValueError(f"{where}: {call} failed: {told(error)}") from error
        missing = [what for name, what in _METHODS.items() if not callable(getattr(made, name, None))]
        if missing:
            raise ValueError(f"{where}: what {call} returned, a {type(made).__name__}, lacks {', '.join(missing)}")
        size = image_size or self.IMAGE_SIZE
        shapes = {camera: (size, size, 3) if size else self.IMAGE_SHAPES[camera] for camera in self.CAMERAS}
        states = {key: shape for key, (shape, _) in self.STATE_SPEC.fields.items()} if self.STATE_SPEC else {}
        return CheckedEnvironment(made, level, where, shapes, {**self.STATE_SHAPES, **states})

    def Expert(self, environment: CheckedEnvironment) -> Any:
        """The user's expert, made of the user's own environment.

        Raises:
            ValueError: there is none.
        """
        if not self.HAS_EXPERT:
            raise ValueError(f"environment {self._reference!r} has no Expert")
        return self._found("Expert")(environment.inner)

    def version(self) -> str:
        """The user's, or the name with a digest of its source file: an edited one makes other episodes."""
        if (given := self._found("version")) is not _MISSING:
            return str(given())
        source = Path(str(self._module.__file__)).read_bytes()
        return f"{self.NAME} ({hashlib.sha256(source).hexdigest()[:10]})"

    def action_name(self, action: Action) -> str:
        """The user's, or the numbers of the action."""
        if (given := self._found("action_name")) is not _MISSING:
            return str(given(action))
        return ", ".join(f"{key} {np.array2string(np.asarray(value), precision=3)}" for key, value in action.items())

    def try_out(self, task: str, image_size: int = 0) -> None:
        """Make an environment, begin an episode and take one step: mistakes are told before anything long begins.

        Raises:
            ValueError: what `make`, `reset` or `step` do wrong.
        """
        environment = self.make(task, image_size)
        try:
            environment.reset(seed=0)
            _ = environment.instruction
            environment.step(self.NOISE[0])
        finally:
            environment.close()

    def _maker(self) -> Any:
        return self._found("make")

    def _found(self, name: str) -> Any:
        """An attribute of the class, else of the module; a class is its own `make`."""
        if self._holder is not None:
            if inspect.getattr_static(self._holder, name, _MISSING) is not _MISSING:
                return getattr(self._holder, name)
            if name == "make":
                return self._holder
        return getattr(self._module, name, _MISSING)

    def _of(self, name: str, default: Any, types: Any) -> Any:
        value = self._found(name)
        if value is _MISSING or (value is None and default is None and name == "STATE_SPEC"):
            return default
        if not isinstance(value, types):
            expected = " or ".join(kind.__name__ for kind in (types if isinstance(types, tuple) else (types,)))
            hint = f"; make one by {expected}.from_dict({name})" if expected.endswith("Spec") and isinstance(
                value, dict) else ""
            raise ValueError(f"environment {self._reference!r}: {name} is a {type(value).__name__}, expected {expected}"
                             f"{hint}")
        return value

    def _check_values(self) -> None:
        where, tasks = f"environment {self._reference!r}", self.TASKS
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.NAME):
            raise ValueError(f"{where}: NAME={self.NAME!r}: expected small letters, digits and '_': data sets bear it")
        if not tasks or not all(isinstance(names, (tuple, list)) and names for names in tasks.values()):
            raise ValueError(f"{where}: TASKS={dict(tasks)}: expected {_NEEDED['TASKS']}")
        without = [name for name in self.CAMERAS if not self.IMAGE_SHAPES.get(name)]
        if not self.IMAGE_SIZE and without:
            raise ValueError(f"{where}: IMAGE_SIZE is 0 and IMAGE_SHAPES has no {', '.join(without)}; expected "
                             "(height, width, 3) of each of CAMERAS")


class CheckedEnvironment:
    """An environment of the user's, each of whose answers is checked."""

    def __init__(self, inner: Any, level: str, where: str, shapes: Mapping[str, tuple[int, ...]],
                 states: Mapping[str, tuple[int, ...]]) -> None:
        """Of the user's object.

        Args:
            inner: the user's.
            level: its task.
            where: begins every message.
            shapes: of the pictures, by camera.
            states: of the state, by key.
        """
        self.inner, self.level = inner, level
        self._where, self._shapes, self._states = where, shapes, states

    @property
    def instruction(self) -> str:
        """The user's, of the current episode."""
        found = getattr(self.inner, "instruction", None)
        if not isinstance(found, str) or not found.strip():
            raise ValueError(f"{self._where}: found instruction {found!r}, expected a text that says what to do")
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
        """Close the user's."""
        self.inner.close()

    def _observation(self, found: Any, method: str) -> Observation:
        if not isinstance(found, Mapping):
            raise ValueError(f"{self._where}: {method}() observed {_kind(found)}, expected a mapping with "
                             f"{', '.join((*self._shapes, *self._states))}")
        observation = {}
        for name, shape in {**self._shapes, **self._states}.items():
            value = np.asarray(found.get(name))
            picture = name in self._shapes
            fits = value.dtype == np.uint8 if picture else value.dtype.kind in "biuf"
            if not fits or value.shape != tuple(shape):
                what = f"{value.dtype}{list(value.shape)}" if name in found else "nothing"
                raise ValueError(f"{self._where}: {method}() observed {name!r} as {what}, expected "
                                 f"{'uint8' if picture else 'numbers '}{list(shape)}; it observed "
                                 f"{', '.join(map(str, found)) or 'nothing'}")
            observation[name] = value
        return observation


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _snake(name: str) -> str:
    """PushT -> push_t."""
    return re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()


def told(error: Exception) -> str:
    """An error of the user's code in one line, with its place."""
    frames = () if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)  # it has its own place
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
