"""Shared code of the adapters for robot arms."""

from __future__ import annotations

from agent_jax.envs import Action


def hand_move(action: Action, mm: float, *, opens: bool) -> str:
    """The hand's move in millimetres and the gripper, as text.

    Args:
        action: {"action": (dx, dy, dz, three rotations, gripper)}, in [-1, 1].
        mm: millimetres of one unit.
        opens: whether a positive gripper value opens it; otherwise it closes.
    """
    dx, dy, dz, *_, grip = (float(number) for number in action["action"])
    return f"{mm * dx:+.0f} {mm * dy:+.0f} {mm * dz:+.0f} mm, {'open' if (grip > 0) == opens else 'close'}"
