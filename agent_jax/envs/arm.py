"""What the adapters of robot arms without a scripted expert share."""

from __future__ import annotations

from typing import NoReturn

from agent_jax.envs import Action


def hand_move(action: Action, mm: float, *, opens: bool) -> str:
    """The hand's move in millimetres and the gripper, of {"action": (dx, dy, dz, three turns, gripper)}.

    Args:
        action: in [-1, 1].
        mm: of a whole unit.
        opens: whether a positive number opens the gripper; else it closes.
    """
    dx, dy, dz, *_, grip = (float(number) for number in action["action"])
    return f"{mm * dx:+.0f} {mm * dy:+.0f} {mm * dz:+.0f} mm, {'open' if (grip > 0) == opens else 'close'}"


def no_expert(name: str, source: str) -> NoReturn:
    """Raise a ValueError: a simulator has no expert, only recordings that others made."""
    raise ValueError(f"{name} has no scripted expert; recorded data of it are prepared by `python -m agent_jax.data "
                     f"prepare --source {source}`")
