"""Fewer steps a second: every n-th step is kept, with its image and state, and with the action of all n.

    steps of 30 Hz    0   1   2 | 3   4   5 | 6   7   8          config.rate_hz=10
    image, state      x           x           x
    targets                   x           x           x          the last: where the arm is to be 1/10 s later
    changes           x + x + x   x + x + x   x + x + x          their sum

Which of them an action is, its ActionSpec says (`absolute`), or else `config.resample_actions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.actions import ActionSpec, Bins, Buttons, Camera, Choice, Part
from agent_jax.data.prepare.config import PrepareConfig

_SHOWN = 8  # names of numbers in a note


class Resampling:
    """Joins the actions of `stride` steps to one."""

    def __init__(self, config: PrepareConfig, stride: int, rate_hz: float, spec: ActionSpec | None, *,
                 absolute: bool | None):
        """Of data with `rate_hz` steps a second, of which every `stride`-th is kept.

        Args:
            config: its `resample_actions` decides.
            stride: 1: all steps are kept.
            rate_hz: of the data.
            spec: of the actions; None: they are numbers of unknown meaning.
            absolute: whether they are targets, rather than changes; None: unknown.

        Raises:
            ValueError: it is unknown how actions are joined.
        """
        self.stride, self.rate_hz = stride, rate_hz / stride
        self._parts, how = spec.parts if spec else (), config.resample_actions
        unclear = not self._parts or any(isinstance(part, Bins) for part in self._parts)
        if stride > 1 and unclear and not how and absolute is None:
            raise ValueError(f"config.rate_hz={config.rate_hz:g}: the data have {rate_hz:g} steps a second, and "
                             "nothing says how the actions of several steps become one; set "
                             "config.resample_actions=last for targets (absolute positions) or "
                             "config.resample_actions=sum for changes (deltas), or give a config.action_spec that says "
                             "absolute=True or False")
        default = how or ("last" if absolute else "sum")
        self._default = default
        self._rules = [_rule(part, how, default) for part in self._parts]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is done, in words."""
        if self.stride == 1:
            return ()
        by_rule: dict[str, list[str]] = {}
        for part, rule in zip(self._parts, self._rules, strict=True):
            by_rule.setdefault(rule, []).append(getattr(part, "name", "") or part.place)
        said = [f"{rule} of {', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
                for rule, names in by_rule.items()]
        return (f"rate: {self.rate_hz:g} of {self.rate_hz * self.stride:g} steps a second; of the actions of "
                f"{self.stride} steps: {'; '.join(said) or self._default} (config.resample_actions)",)

    def joined(self, actions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The action of the steps of one group, of which the last of an episode may have fewer."""
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


def stride_of(config: PrepareConfig, rate_hz: float) -> int:
    """Every how many steps one is taken so that `config.rate_hz` comes out; 1 where the config asks for no rate.

    Raises:
        ValueError: the data have another rate that is no multiple of it.
    """
    if not config.rate_hz:
        return 1
    stride = round(rate_hz / config.rate_hz)
    if stride < 1 or abs(rate_hz - stride * config.rate_hz) > 1e-3 * rate_hz:
        raise ValueError(f"config.rate_hz={config.rate_hz:g}: the data have {rate_hz:g} steps a second, expected that, "
                         "or a whole fraction of it")
    return stride


def _rule(part: Part, how: str, default: str) -> str:
    """How a part's values are joined."""
    if isinstance(part, Bins):
        return "last" if default == "sum" and _is_gripper(part) else default
    if isinstance(part, Choice):
        return "first" if how == "first" else "last"
    if isinstance(part, Buttons):
        return how if how in ("first", "last") else "any"
    if isinstance(part, Camera):
        return how or "sum"  # degrees turned at each step
    return how if how == "last" else "first"  # a stick: as it stood when the image was taken


def _is_gripper(part: Bins) -> bool:
    """Whether a number among changes is the command to a gripper, which does not add up: 1 and 1 is still 1."""
    name = (part.name or part.prefix).lower()
    return ("grip" in name or "finger" in name) and not name.startswith(("d_", "dgrip", "delta"))


def _joined(values: np.ndarray, rule: str) -> np.ndarray:
    """(steps, ...) to (...)."""
    if rule == "sum":
        return values.sum(0, dtype=np.float64 if values.dtype.kind == "f" else None)
    if rule == "any":
        return np.asarray(values.any(0))
    return values[0 if rule == "first" else -1]
