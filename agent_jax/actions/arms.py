"""Specs of robot arms, whose actions and states are vectors of numbers, as plain JSON for a domain of the config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent_jax.actions.declarations import open_bounds
from agent_jax.actions.parts import Bins
from agent_jax.actions.specs import ActionSpec, Group, StateSpec

Numbers = float | Sequence[float] | None


def arm_spec(name: str, *, names: Sequence[str], low: Numbers = None, high: Numbers = None, bounds: str = "",
             unit: str | Sequence[str] = "", rate_hz: float = 0.0, frame: str = "", absolute: bool = False,
             key: str = "action", count: int = 256, block: str = "") -> dict[str, Any]:
    """The ActionSpec of a vector, for `action_spec` of a domain; each number becomes one token of `count`.

        config.vocabulary.blocks = ("my_arm",)
        arm_spec("my_arm", names=("dx", "dy", "dz", "gripper"), low=-0.05, high=(0.05, 0.05, 0.05, 1.0), rate_hz=5.0)
        arm_spec("my_arm", names=("dx", "dy", "dz", "gripper"), bounds="quantiles", rate_hz=5.0)

    Args:
        name: of the spec.
        names: of the numbers, in the order of the data.
        low: lower bound of each number or of all; smaller values are clipped.
        high: upper bound, likewise.
        bounds: how to find low and high in the train split instead: "min_max", "quantiles" (1% and 99%) or "mean_3std".
        unit: of each number or of all.
        rate_hz: steps a second; 0: unknown.
        frame: reference frame, as "robot base".
        absolute: targets in `frame`; False: changes.
        key: field of the steps with the vector.
        count: bins including the top edge: 21 as in the paper, 256 as in RT-1.
        block: of config.vocabulary.blocks; "": the name of the spec. Specs with the same block share its tokens.

    Raises:
        ValueError: lengths differ, both or neither of `bounds` and `low`, `high` are given, or bounds cannot be binned.
    """
    parts = _bins(name, key, names, "", low, high, unit, count)
    spec = ActionSpec(name, block or name, (Group("STARTACTION", parts, "ENDOFACTION"),), rate_hz=rate_hz, frame=frame,
                      absolute=absolute)
    return _with_bounds(spec.to_dict(), bounds, given=low is not None or high is not None)


def state_spec(name: str, *, names: Sequence[str], key: str, low: Numbers = None, high: Numbers = None,
               bounds: str = "", unit: str | Sequence[str] = "", frame: str = "", count: int = 256,
               block: str = "") -> dict[str, Any]:
    """The StateSpec of a vector, for `state_spec` of a domain; arguments and errors as `arm_spec`."""
    parts = _bins(name, key, names, "state ", low, high, unit, count)
    spec = StateSpec(name, block or name, (Group("STARTSTATE", parts, "ENDOFSTATE"),), frame=frame)
    return _with_bounds(spec.to_dict(), bounds, given=low is not None or high is not None)


def osc_pose_spec(name: str, *, rate_hz: float = 20.0) -> dict[str, Any]:
    """The ActionSpec of robosuite's OSC_POSE controller (changes), as in LIBERO, robomimic and MimicGen.

    Seven numbers in [-1, 1], at most 5 cm and 0.5 rad a step.
    """
    return arm_spec(name, names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"), low=-1.0, high=1.0,
                    unit=("m / 20", "m / 20", "m / 20", "rad / 2", "rad / 2", "rad / 2", ""), rate_hz=rate_hz,
                    frame="robot base; the gripper is absolute, 1 closes", count=256)


def osc_pose_state(name: str) -> dict[str, Any]:
    """The StateSpec of LIBERO's arm: position and axis-angle of the hand, and two fingers."""
    return state_spec(name, key="state", names=("x", "y", "z", "rx", "ry", "rz", "finger 0", "finger 1"),
                      low=(-0.6, -0.6, 0.0, -3.2, -3.2, -3.2, 0.0, -0.05),
                      high=(0.6, 0.6, 1.5, 3.2, 3.2, 3.2, 0.05, 0.0),
                      unit=("m", "m", "m", "rad", "rad", "rad", "m", "m"), frame="world; axis-angle", count=256)


def _bins(name: str, key: str, names: Sequence[str], prefix: str, low: Numbers, high: Numbers,
          unit: str | Sequence[str], count: int) -> tuple[Bins, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"spec {name!r}: found names {tuple(names)}, expected no repetition: they name the tokens")

    def each(what: str, value: Any, default: Any) -> list[Any]:
        value = default if value is None else value
        values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * len(names)
        if len(values) != len(names):
            raise ValueError(f"spec {name!r}: found {len(values)} values of {what} for {len(names)} names, expected "
                             "one for each or one for all")
        return values

    fields = zip(names, each("low", low, 0.0), each("high", high, 1.0), each("unit", unit, ""), strict=True)
    return tuple(Bins(key, index, f"{prefix}{part}_", least, most, count=count, name=part, unit=of_part)
                 for index, (part, least, most, of_part) in enumerate(fields))


def _with_bounds(content: dict[str, Any], bounds: str, *, given: bool) -> dict[str, Any]:
    """The spec with `bounds`, if there are any, instead of low and high in every part."""
    if bool(bounds) == given:
        raise ValueError(f"spec {content['name']!r}: found {'both' if given else 'neither'} of bounds and low, high, "
                         "expected either bounds or low and high")
    if bounds:
        for part in content["groups"][0]["parts"]:
            del part["low"], part["high"]
            part["bounds"] = bounds
        open_bounds(content, f"spec {content['name']!r}")
    return content
