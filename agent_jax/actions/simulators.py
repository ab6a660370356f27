"""ActionSpecs and StateSpecs of simulators that the paper does not use; no simulator is imported.

Each spec has a vocabulary block of its own, as in `config.vocabulary.blocks = ("metaworld",)`.
"""

from __future__ import annotations

from agent_jax.actions import arms
from agent_jax.actions.controls import Buttons, Camera
from agent_jax.actions.specs import ActionSpec, Group, StateSpec

# 21 bins as in the paper: the hand moves at most 1 cm a step, so a bin is 1 mm.
METAWORLD = ActionSpec.from_dict(arms.arm_spec(
    "metaworld", names=("dx", "dy", "dz", "gripper"), low=-1.0, high=1.0, unit=("cm", "cm", "cm", ""),
    frame="world; the gripper is a force, 1 closes", count=21))
# The range of the hand in all 50 tasks. 101 bins of about a centimetre or less, the distance of a step.
METAWORLD_STATE = StateSpec.from_dict(arms.state_spec(
    "metaworld", key="state", names=("x", "y", "z", "gripper"), low=(-0.525, 0.348, -0.0525, 0.0),
    high=(0.525, 1.025, 0.7, 1.0), unit=("m", "m", "m", ""), frame="world; the gripper is open at 1", count=101))

VIZDOOM_BUTTONS = ("forward", "back", "left", "right")  # keys W, S, A, D
VIZDOOM = ActionSpec(
    name="vizdoom",
    block="vizdoom",
    groups=(Group("STARTACTION", (Buttons("buttons", VIZDOOM_BUTTONS), Camera("camera", low=-30, high=30)),
                  "ENDOFACTION"),),
    rate_hz=35 / 4,  # the game's 35 tics a second, 4 of them a step
    frame="the player's view",
    absolute=False,
)

# As for its demonstrations (agent_jax.data.prepare.sources.robomimic.robomimic).
LIBERO = ActionSpec.from_dict(arms.osc_pose_spec("libero"))
LIBERO_STATE = StateSpec.from_dict(arms.osc_pose_state("libero"))
