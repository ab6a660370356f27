"""Limits of actions and of the rate of requests.

    {"action": [[-0.02, 0.02], [-0.02, 0.02]]}      limits.json: [low, high] of each component, null: no limit

An action moves a robot, so one that is not finite is always refused.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from agent_jax.actions import TERMINAL_KEY, ActionSpec
from agent_jax.actions.parts import inner
from agent_jax.json_files import parse_json

_LARGEST = float(np.finfo(np.float32).max)  # actions are float32


class RefusedActionError(Exception):
    """The policy's action is not finite, has a wrong shape, or is beyond the limits."""


@dataclasses.dataclass(frozen=True)
class ActionLimits:
    """Bounds of an ActionSpec's numbers, within the spec's bounds."""

    spec: ActionSpec
    bounds: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)  # (low, high)
    beyond: Literal["clamp", "refuse"] = "clamp"

    @classmethod
    def read(cls, path: str | Path, spec: ActionSpec, beyond: Literal["clamp", "refuse"] = "clamp") -> Self:
        """Read limits from a JSON file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, a key that the spec lacks or that has no real numbers, a wrong number of components,
                a low above its high, or limits outside the spec's bounds.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"--action_limits={file}: no such file")
        content = parse_json(file.read_bytes(), f"--action_limits={file}")
        if not isinstance(content, dict):
            raise ValueError(f"--action_limits={file}: found {type(content).__name__}, expected a map by key")
        bounds = {key: _bounds(f"--action_limits={file}: {key!r}", key, pairs, spec) for key, pairs in content.items()}
        return cls(spec, bounds, beyond)

    def to_json(self) -> dict[str, Any]:
        """The limits for the metadata; null: no limit."""
        plain = lambda array: [float(x) if math.isfinite(x) else None for x in array.reshape(-1)]  # noqa: E731
        return {"beyond": self.beyond, "bounds": {key: {"low": plain(low), "high": plain(high)}
                                                  for key, (low, high) in self.bounds.items()}}

    def apply(self, action: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
        """The action within the limits, and the changed components, e.g. "action[1]: 0.03 -> 0.02".

        Raises:
            RefusedActionError: a number that is not finite, keys or shapes other than the spec's, or an action beyond
                limits that refuse.
        """
        made = {key: np.asarray(value) for key, value in action.items()}
        if self.spec.terminal and made.keys() == {TERMINAL_KEY}:  # the episode is over, no motion
            return made, []
        expected = {key: shape for key, (shape, _) in self.spec.fields.items()}
        found = {key: value.shape for key, value in made.items()}
        if found != expected:
            raise RefusedActionError(f"the policy's action has the keys and shapes {found}, the ActionSpec {expected}")
        for key, value in made.items():
            if not np.isfinite(value).all():
                raise RefusedActionError(f"the policy's action {key!r} is not finite: {value.tolist()}")
        changed = []
        for key, (low, high) in self.bounds.items():
            value = made[key]
            within = np.clip(value, low, high)
            for component in np.argwhere(within != value):
                index = tuple(int(i) for i in component)
                name = key if not index else f"{key}[{index[0]}]"
                changed.append(f"{name}: {value[index]:g} -> {within[index]:g}")
            made[key] = within.astype(value.dtype)
        if changed and self.beyond == "refuse":
            raise RefusedActionError(f"beyond the server's action limits (nearest allowed): {'; '.join(changed)}")
        return made, changed


    def apply_all(self, actions: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, np.ndarray]], list[str]]:
        """The same of several actions in order; names and errors begin with the number of the action."""
        made, changed = [], []
        for number, action in enumerate(actions, 1):
            place = f"action {number} of {len(actions)}"
            try:
                within, of_action = self.apply(action)
            except RefusedActionError as error:
                raise RefusedActionError(f"{place}: {error}") from None
            made.append(within)
            changed += [f"{place}: {component}" for component in of_action]
        return made, changed


def _bounds(where: str, key: str, pairs: Any, spec: ActionSpec) -> tuple[np.ndarray, np.ndarray]:
    if key not in spec.fields:
        raise ValueError(f"{where}: expected a key of the ActionSpec {spec.name!r}: {', '.join(spec.fields)}")
    shape, dtype = spec.fields[key]
    if dtype.kind != "f":
        raise ValueError(f"{where}: found limits of {dtype}, expected real numbers: a choice cannot be clamped")
    pairs = pairs if shape else [pairs]  # for a key with one number: its [low, high]
    size = math.prod(shape)
    if not isinstance(pairs, list) or len(pairs) != size:
        raise ValueError(f"{where}: found {pairs!r}, expected a list with [low, high] for each of {size} components")
    low, high = np.full(size, -np.inf), np.full(size, np.inf)
    for i, pair in enumerate(pairs):
        if pair is None:
            continue
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(type(x) in (int, float) and abs(x) <= _LARGEST for x in pair) or pair[0] > pair[1]:
            raise ValueError(f"{where}: found {pair!r} for component {i}, expected [low, high] with low <= high, or "
                             "null")
        low[i], high[i] = pair
    lowest, highest = (bound.reshape(-1) for bound in spec.bounds(key))
    if ((high < lowest) | (low > highest)).any():
        raise ValueError(f"{where}: found {pairs!r}, expected limits that overlap the ActionSpec's bounds, "
                         f"{lowest.tolist()} to {highest.tolist()}; check the units")
    # Rounded inwards to float32, so that no float32 action passes a limit by rounding.
    return inner(low, np.inf).reshape(shape), inner(high, -np.inf).reshape(shape)


class RateLimiter:
    """A token bucket (Turner, 1986): on average `hz` messages a second, and up to as many at once after a pause."""

    def __init__(self, hz: float) -> None:
        self._hz = hz
        self._capacity = max(hz, 1.0)
        self._left, self._seen = self._capacity, time.monotonic()

    def take(self) -> float:
        """0 if a message is allowed now, else the seconds until the next is allowed."""
        if not self._hz:
            return 0.0
        now = time.monotonic()
        self._left = min(self._capacity, self._left + (now - self._seen) * self._hz)
        self._seen = now
        if self._left < 1:
            return (1 - self._left) / self._hz
        self._left -= 1
        return 0.0
