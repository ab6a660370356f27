"""Reduces the step rate: keeps every n-th step with its image and state, and joins the actions of all n.

    steps at 30 Hz    0   1   2 | 3   4   5 | 6   7   8          config.rate_hz=10
    image, state      x           x           x
    targets                   x           x           x          the last: the arm's position 1/10 s later
    deltas            x + x + x   x + x + x   x + x + x          their sum

The ActionSpec (`absolute`) or `config.resample_actions` decides between targets and deltas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.actions import ActionSpec, Bins, Buttons, Camera, Choice, Part
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.source import SourceStep

_MAX_NAMES = 8  # in a note


class Resampling:
    """Joins the actions of `stride` steps into one."""

    def __init__(self, config: PrepareConfig, stride: int, rate_hz: float, spec: ActionSpec | None, *,
                 absolute: bool | None):
        """Choose the rule for each part of the action.

        Args:
            config: its `resample_actions` decides.
            stride: every how many steps one is kept.
            rate_hz: of the data.
            spec: of the actions; None: numbers of unknown meaning.
            absolute: actions are targets, not deltas; None: unknown.

        Raises:
            ValueError: it is unknown how to join actions.
        """
        self.stride, self.rate_hz = stride, rate_hz / stride
        self._parts, how = spec.parts if spec else (), config.resample_actions
        unclear = not self._parts or any(isinstance(part, Bins) for part in self._parts)
        if stride > 1 and unclear and not how and absolute is None:
            raise ValueError(f"config.rate_hz={config.rate_hz:g}: the data have {rate_hz:g} steps a second, and "
                             "it is unknown how to join the actions of several steps; set "
                             "config.resample_actions=last for targets (absolute positions) or "
                             "config.resample_actions=sum for deltas, or give a config.action_spec with absolute=True "
                             "or False")
        self._default = how or ("last" if absolute else "sum")
        self._rules = [_rule(part, how, self._default) for part in self._parts]

    @property
    def notes(self) -> tuple[str, ...]:
        """The applied rules, as a sentence."""
        if self.stride == 1:
            return ()
        by_rule: dict[str, list[str]] = {}
        for part, rule in zip(self._parts, self._rules, strict=True):
            by_rule.setdefault(rule, []).append(getattr(part, "name", "") or part.place)
        rules = [f"{rule} of {', '.join(names[:_MAX_NAMES])}{' ...' if len(names) > _MAX_NAMES else ''}"
                 for rule, names in by_rule.items()]
        return (f"rate: {self.rate_hz:g} of {self.rate_hz * self.stride:g} steps a second; of the actions of "
                f"{self.stride} steps: {'; '.join(rules) or self._default} (config.resample_actions)",)

    def joined(self, actions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The action of a group of steps; the last group of an episode may have fewer than `stride`."""
        if self.stride == 1:
            return dict(actions[0])
        found = {key: np.stack([np.asarray(action[key]) for action in actions]) for key in actions[0]}
        if not self._parts:
            return {key: _joined(values, self._default) for key, values in found.items()}
        made = {key: np.array(values[0], np.float64 if values.dtype.kind == "f" else values.dtype)
                for key, values in found.items()}
        for part, rule in zip(self._parts, self._rules, strict=True):
            at = ... if part.index is None else part.index
            made[part.key][at] = _joined(found[part.key][:, at], rule)
        return made

    def steps(self, count: int, images: Mapping[str, Iterator[bytes | np.ndarray]], actions: Mapping[str, np.ndarray],
              observations: Mapping[str, np.ndarray], rewards: np.ndarray | None) -> Iterator[SourceStep]:
        """The kept steps of an episode of `count`, with joined actions and summed rewards (None: 0).

        Arrays are (count, ...) by key; `images` has those of the kept steps, by camera.
        """
        for first in range(0, count, self.stride):
            group = range(first, min(first + self.stride, count))
            joined = self.joined([{key: values[step] for key, values in actions.items()} for step in group])
            reward = 0.0 if rewards is None else float(rewards[group.start : group.stop].sum())
            yield SourceStep({name: next(shown) for name, shown in images.items()}, joined,
                             {key: values[first] for key, values in observations.items()}, reward=reward)


def stride_of(config: PrepareConfig, rate_hz: float) -> int:
    """Every how many steps one is kept to reach `config.rate_hz`; 1 if the config asks for no rate.

    Raises:
        ValueError: the rate of the data is not a multiple of it.
    """
    if not config.rate_hz:
        return 1
    stride = round(rate_hz / config.rate_hz)
    if stride < 1 or abs(rate_hz - stride * config.rate_hz) > 1e-3 * rate_hz:
        raise ValueError(f"config.rate_hz={config.rate_hz:g}: the data have {rate_hz:g} steps a second, expected that, "
                         "or a whole fraction of it")
    return stride


def _rule(part: Part, how: str, default: str) -> str:
    """How to join the values of a part."""
    if isinstance(part, Bins):
        return "last" if default == "sum" and _is_gripper(part) else default
    if isinstance(part, Choice):
        return "first" if how == "first" else "last"
    if isinstance(part, Buttons):
        return how if how in ("first", "last") else "any"
    if isinstance(part, Camera):
        return how or "sum"  # degrees turned per step
    return how if how == "last" else "first"  # a stick: its position in the image


def _is_gripper(part: Bins) -> bool:
    """Whether a number among deltas is a gripper command, which must not be summed."""
    name = (part.name or part.prefix).lower()
    return ("grip" in name or "finger" in name) and not name.startswith(("d_", "dgrip", "delta"))


def _joined(values: np.ndarray, rule: str) -> np.ndarray:
    """Join (steps, ...) to (...)."""
    if rule == "sum":
        return values.sum(0, dtype=np.float64 if values.dtype.kind == "f" else None)
    if rule == "any":
        return np.asarray(values.any(0))
    return values[0 if rule == "first" else -1]
