"""The ActionSpecs and StateSpecs of the paper's data sets (arXiv 2402.05929) and of BabyAI."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent_jax.actions.controls import Buttons, Camera, Stick
from agent_jax.actions.parts import Bins, Choice
from agent_jax.actions.specs import ActionSpec, Group, StateSpec
from agent_jax.actions.vocabulary import BABYAI_BLOCK, BLEEDING_EDGE_BUTTONS, IAFM, MINECRAFT_BUTTONS

_BOARD_X, _BOARD_Y = (0.15, 0.6), (-0.3, 0.3)  # metres: the board of Language-Table

LANGUAGE_TABLE = ActionSpec(
    name="language_table",
    block=IAFM.name,
    groups=(Group("STARTACTION", (
        Bins("action", 0, "ROBOTACTIONX", -0.03, 0.03, name="dx", unit="m"),
        Bins("action", 1, "ROBOTACTIONY", -0.03, 0.03, name="dy", unit="m"),
    ), "ENDOFACTION"),),
    terminal="TERMINAL",
    rate_hz=10.0,
    frame="robot base, plane of the board",
    absolute=False,
)

LANGUAGE_TABLE_STATE = StateSpec(
    name="language_table",
    block=IAFM.name,
    groups=(
        Group("STARTEET", (
            Bins("effector_translation", 0, "ROBOTEETX", *_BOARD_X, name="x", unit="m"),
            Bins("effector_translation", 1, "ROBOTEETY", *_BOARD_Y, name="y", unit="m"),
        ), "ENDOFEET"),
        Group("STARTEETT", (
            Bins("effector_target_translation", 0, "ROBOTEETTX", *_BOARD_X, name="target x", unit="m"),
            Bins("effector_target_translation", 1, "ROBOTEETTY", *_BOARD_Y, name="target y", unit="m"),
        ), "ENDOFEETT"),
    ),
    frame="robot base, plane of the board",
)

# CALVIN's rel_actions are scaled by its authors: metres times 50, radians times 20, both clipped to [-1, 1].
_CALVIN_ACTION = (("dx", "m / 50"), ("dy", "m / 50"), ("dz", "m / 50"),
                  ("droll", "rad / 20"), ("dpitch", "rad / 20"), ("dyaw", "rad / 20"))

CALVIN = ActionSpec(
    name="calvin",
    block=IAFM.name,
    groups=(Group("STARTACTION", (
        *(Bins("action", d, f"ROBOTACTION{d}_", -1.0, 1.0, name=name, unit=unit)
          for d, (name, unit) in enumerate(_CALVIN_ACTION)),
        Choice("action", 6, ("GRIPPER_OPEN", "GRIPPER_CLOSE"), (1.0, -1.0), name="gripper"),
    ), "ENDOFACTION"),),
    rate_hz=30.0,
    frame="world; the gripper is absolute",
    absolute=False,
)

_CALVIN_STATE = (("x", "m"), ("y", "m"), ("z", "m"), ("roll", "rad"), ("pitch", "rad"), ("yaw", "rad"),
                 ("gripper width", "m"), *((f"joint {j}", "rad") for j in range(1, 8)))


def calvin_state(mean: Sequence[float] | np.ndarray, std: Sequence[float] | np.ndarray) -> StateSpec:
    """The StateSpec of CALVIN's robot_obs (15): 14 numbers binned over mean +- 3 std, then the gripper.

    Args:
        mean: of robot_obs over the training steps; only the first 14 numbers are used.
        std: standard deviation, likewise.

    Raises:
        ValueError: fewer than 14 numbers, or a standard deviation is not positive.
    """
    mean_D, std_D = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if mean_D.ndim != 1 or mean_D.shape != std_D.shape or len(mean_D) < 14:
        raise ValueError(f"calvin_state: found mean of shape {mean_D.shape} and std of shape {std_D.shape}, expected "
                         "two vectors of at least 14 numbers, as robot_obs has")
    low_D, high_D = mean_D - 3 * std_D, mean_D + 3 * std_D
    bins = [Bins("robot_obs", d, f"ROBOTSTATE{d}_", low_D[d], high_D[d], name=name, unit=unit)
            for d, (name, unit) in enumerate(_CALVIN_STATE)]
    gripper = Choice("robot_obs", 14, ("GRIPPER_OPENED", "GRIPPER_CLOSED"), (1.0, -1.0), name="gripper")
    return StateSpec("calvin", IAFM.name, (Group("STARTSTATE", (*bins, gripper), "ENDOFSTATE"),), frame="world")


MINECRAFT = ActionSpec(
    name="minecraft",
    block=IAFM.name,
    groups=(Group("STARTACTION", (Buttons("buttons", MINECRAFT_BUTTONS), Camera("camera")), "ENDOFACTION"),),
    rate_hz=20.0,
    frame="the player's view",
    absolute=False,
)

BLEEDING_EDGE = ActionSpec(
    name="bleeding_edge",
    block=IAFM.name,
    groups=(Group("STARTACTION", (
        Buttons("buttons", BLEEDING_EDGE_BUTTONS),
        Stick("left_stick", "lrot", "lmag"),
        Stick("right_stick", "rrot", "rmag"),
    ), "ENDOFACTION"),),
    frame="the controller's sticks",
    absolute=True,  # where a stick stands, not how it moves
)

BABYAI = ActionSpec(
    name="babyai",
    block=BABYAI_BLOCK.name,
    groups=(Group("STARTACTION", (Choice("action", None, BABYAI_BLOCK.tokens[2:], name="action"),), "ENDOFACTION"),),
    frame="the agent's view",
    absolute=False,
)
