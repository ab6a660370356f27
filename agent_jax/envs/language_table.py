"""Language-Table (Lynch et al. 2022, arXiv 2210.06407) from the user's checkout: an arm pushes blocks on a board.

    AGENT_JAX_LANGUAGE_TABLE=DIR     git clone https://github.com/google-research/language-table DIR

The tasks are the five rewards of its evaluation, with 8 blocks; "blocktoblock@BLOCK_4" has 4 blocks. As in its
evaluation, a layout is drawn again until the oracle finds a plan for it, and an episode has 200 steps.
"""

from __future__ import annotations

import difflib
import functools
from typing import Any

import numpy as np

from agent_jax.actions import LANGUAGE_TABLE, LANGUAGE_TABLE_STATE
from agent_jax.data.images import prepare_image
from agent_jax.envs import Action, Observation
from agent_jax.envs.checkout import Checkout
from agent_jax.envs.random_actions import uniform_actions

CHECKOUT = Checkout(
    name="language_table",
    variable="AGENT_JAX_LANGUAGE_TABLE",
    url="https://github.com/google-research/language-table",
    marker="language_table/environments/language_table.py",
    roots=(".",),
    install="pip install pybullet gym opencv-python-headless scipy matplotlib tf-agents (or its requirements.txt)",
)
_SOURCE = "language_table.environments."
language_table = CHECKOUT.module(_SOURCE + "language_table")
blocks = CHECKOUT.module(_SOURCE + "blocks")
oracles = CHECKOUT.module(_SOURCE + "oracles.push_oracle_rrt_slowdown")
gym_wrapper = CHECKOUT.module("tf_agents.environments.gym_wrapper")
time_steps = CHECKOUT.module("tf_agents.trajectories.time_step")

NAME = "language_table"
ACTION_SPEC = LANGUAGE_TABLE
STATE_SPEC = LANGUAGE_TABLE_STATE
STATE_SHAPES = {}
CAMERAS = ("rgb",)
# Module and class of each reward, by its name in the repository's eval/main.py.
REWARDS = {
    "blocktoblock": ("block2block", "BlockToBlockReward"),
    "blocktoabsolutelocation": ("block2absolutelocation", "BlockToAbsoluteLocationReward"),
    "blocktoblockrelativelocation": ("block2block_relative_location", "BlockToBlockRelativeLocationReward"),
    "blocktorelativelocation": ("block2relativelocation", "BlockToRelativeLocationReward"),
    "separate": ("separate_blocks", "SeparateBlocksReward"),
}
TASKS = {"LanguageTable": tuple(REWARDS)}
MAX_STEPS = 200  # eval/main.py
RATE_HZ = 10.0
IMAGE_SIZE = 0
IMAGE_SHAPES = {"rgb": (180, 320, 3)}
ONE_A_PROCESS = False
HAS_EXPERT = True
RANDOM = {"random": uniform_actions(LANGUAGE_TABLE)}
NOISE = RANDOM["random"]
_ATTEMPTS = 100  # to draw a layout that the oracle can solve; most can be solved


version = CHECKOUT.version


def action_name(action: Action) -> str:
    """The move of the effector in millimetres."""
    dx, dy = (1000 * float(number) for number in action["action"])
    return f"{dx:+.0f} {dy:+.0f} mm"


class LanguageTable:
    """One reward. Observations: {"rgb": uint8 (180, 320, 3), or square; and the keys of LANGUAGE_TABLE_STATE}."""

    def __init__(self, level: str, image_size: int = IMAGE_SIZE) -> None:
        name, _, variant = level.partition("@")
        variants = blocks.LanguageTableBlockVariants
        known = [item.name for item in variants]
        if name not in REWARDS or (variant and variant not in known):
            near = difflib.get_close_matches(name, REWARDS, n=1) or list(REWARDS)
            raise ValueError(f"task: found {level!r}, expected one of {', '.join(near)}, optionally followed by @ and "
                             f"one of {', '.join(known)}")
        self.level, self._size, self._steps = level, image_size, 0
        module, reward = REWARDS[name]
        self.simulator: Any = language_table.LanguageTable(
            block_mode=variants[variant or "BLOCK_8"],
            reward_factory=getattr(CHECKOUT.module(f"{_SOURCE}rewards.{module}"), reward), seed=0)
        if not hasattr(self.simulator, "get_control_frequency"):  # the oracle calls it; the public version lacks it
            self.simulator.get_control_frequency = lambda: RATE_HZ
        self._raw: dict[str, Any] = {}

    @property
    def instruction(self) -> str:
        """The sentence drawn by the reward, e.g. "push the blue cube to the red star"."""
        return self.simulator.decode_instruction(np.asarray(self._raw["instruction"]))

    @functools.cached_property
    def oracle(self) -> Any:
        """The repository's planner, wrapped in TF-Agents' interface as in the repository's evaluation."""
        wrapped = gym_wrapper.GymWrapper(self.simulator)
        return oracles.ObstacleOrientedPushOracleBoard2dRRT(wrapped, use_ee_planner=True)

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin the episode of `seed`, with the first of its layouts that the oracle can solve.

        Raises:
            RuntimeError: the oracle solves none of 100 layouts.
        """
        self.simulator.seed(seed % 2**32)
        self.oracle.reset()
        self.oracle._np_random_state = np.random.RandomState(seed % 2**32)
        for _ in range(_ATTEMPTS):
            self._raw = self.simulator.reset()
            if self.oracle.get_plan(self.simulator.compute_state()):
                self._steps = 0
                return self._observe(), {"success": False}
        raise RuntimeError(f"language_table: the oracle found no plan for {_ATTEMPTS} layouts of seed {seed}")

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take {"action": (dx, dy) in metres}, clipped to the ActionSpec's bounds."""
        low, high = ACTION_SPEC.bounds("action")
        move = np.clip(np.asarray(action["action"], np.float64), low, high).astype(np.float32)
        self._raw, reward, done, _ = self.simulator.step(move)
        self._steps += 1
        success = bool(self.simulator.succeeded)
        over = bool(done) or success
        return self._observe(), float(reward), over, not over and self._steps >= MAX_STEPS, {"success": success}

    def close(self) -> None:
        """End the physics server."""
        self.simulator.pybullet_client.disconnect()

    def _observe(self) -> Observation:
        state = {key: np.asarray(self._raw[key], np.float32) for key in LANGUAGE_TABLE_STATE.fields}
        return {"rgb": prepare_image(np.asarray(self._raw["rgb"], np.uint8), self._size), **state}


make = LanguageTable


class Expert:
    """The repository's planner: RRT around the other blocks, then a push."""

    def __init__(self, environment: LanguageTable) -> None:
        self._environment, self._first = environment, True
        self.failed = False

    def act(self, taken: Action | None = None) -> dict[str, np.ndarray]:
        """The planner's move; it depends on the current positions, so `taken` is not read."""
        del taken
        observation = self._environment._raw
        step = time_steps.restart(observation) if self._first else time_steps.transition(observation, 0.0)
        self._first = False
        move = self._environment.oracle._action(step, ()).action
        low, high = ACTION_SPEC.bounds("action")
        return {"action": np.clip(move, low, high).astype(np.float32)}
