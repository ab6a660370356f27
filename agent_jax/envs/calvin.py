"""CALVIN (Mees et al. 2022, arXiv 2112.03227) from the user's checkout: chains of five instructions at a desk.

    AGENT_JAX_CALVIN=DIR          git clone --recurse-submodules https://github.com/mees/calvin DIR
    AGENT_JAX_CALVIN_DATA=DIR     a CALVIN data set whose scene is used; unset: scene D of the checkout
    AGENT_JAX_CALVIN_EGL=0        use pybullet's CPU renderer instead of OpenGL

    seed -> one of the 1,000 chains -> instruction 1 --done, by the task oracle--> instruction 2 ... 5
                                       at most 360 steps each

"Chains" is the benchmark: the instruction changes within the episode when the oracle finds it completed, and the
episode ends with the first instruction that fails. info["completed"] counts them. The closed loop resets the policy at
every new instruction, as CALVIN's protocol requires, and reports how many instructions in a row succeed. "First" has
only the first instruction.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import numpy as np

from agent_jax.actions import CALVIN
from agent_jax.data.images import prepare_image
from agent_jax.envs import Action, Observation
from agent_jax.envs.arm import hand_move
from agent_jax.envs.calvin_checkout import CHAINS, CHECKOUT, chain, initial_state, make_simulator, oracle, sentences
from agent_jax.envs.random_actions import uniform_actions

CHECKOUT.directory()

NAME = "calvin"
ACTION_SPEC = CALVIN
STATE_SPEC = None  # its bounds come from the data set (actions.calvin_state)
STATE_SHAPES = {"robot_obs": (15,)}
CAMERAS = ("rgb", "rgb_gripper")  # rgb_static and rgb_gripper
TASKS = {"CALVIN": ("Chains",), "First": ("First",)}
SUBTASK_STEPS = 360  # evaluate_policy.py: EP_LEN
IMAGE_SIZE = 0
IMAGE_SHAPES = {"rgb": (200, 200, 3), "rgb_gripper": (84, 84, 3)}
ONE_A_PROCESS = True  # the robot's code always uses pybullet's first simulation
HAS_EXPERT = False
RANDOM = {"random": uniform_actions(CALVIN)}
NOISE = RANDOM["random"]


version = CHECKOUT.version
action_name = functools.partial(hand_move, mm=20, opens=True)
_MADE: weakref.WeakSet[Calvin] = weakref.WeakSet()  # the environments of this process


class Calvin:
    """Observations: {"rgb": uint8 (200, 200, 3), "rgb_gripper": uint8 (84, 84, 3), "robot_obs": float32 (15,)}."""

    def __init__(self, level: str, image_size: int = IMAGE_SIZE) -> None:
        if level not in ("Chains", "First"):
            raise ValueError(f'task: found {level!r}, expected "Chains" (five instructions) or "First" (one)')
        if any(other.open for other in _MADE):
            raise RuntimeError("calvin: found another environment open in this process, expected none: the simulator "
                               "supports one a process; close it, or make this one in another process")
        self.level, self._size = level, image_size
        self._oracle, self._sentences = oracle(), sentences()
        self.simulator: Any = make_simulator()
        self.open = True
        _MADE.add(self)
        self.subtasks: tuple[str, ...] = ()
        self._completed = self._steps = 0
        self._before: Any = None

    @property
    def instruction(self) -> str:
        """The benchmark's sentence for the current subtask."""
        return str(self._sentences[self.subtasks[min(self._completed, len(self.subtasks) - 1)]][0])

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin chain `seed % 1000`."""
        condition, subtasks = chain(seed % CHAINS)
        self.subtasks = tuple(subtasks) if self.level == "Chains" else tuple(subtasks[:1])
        robot, scene = initial_state(condition)
        observed = self.simulator.reset(robot_obs=robot, scene_obs=scene)
        self._completed = self._steps = 0
        self._before = self.simulator.get_info()
        return self._observe(observed), self._info

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take {"action": (7,)}; reward 1 when a subtask is completed.

        The numbers are clipped to the ActionSpec's bounds, and the gripper is set to -1 (close) or 1 (open), the only
        values the simulator takes.
        """
        move = np.clip(np.asarray(action["action"], np.float64), -1, 1)
        move[6] = 1 if move[6] > 0 else -1
        observed, _, _, info = self.simulator.step(move)
        self._steps += 1
        done = bool(self._oracle.get_task_info_for_set(self._before, info, {self.subtasks[self._completed]}))
        if done:
            self._completed, self._steps, self._before = self._completed + 1, 0, info
        info = self._info
        late = not done and self._steps >= SUBTASK_STEPS
        return self._observe(observed), float(done), info["success"], late, info

    def close(self) -> None:
        """End the physics server."""
        self.open = False
        self.simulator.close()
        self.simulator.ownsPhysicsClient = False  # otherwise its __del__ would end a later server of the same number

    @property
    def _info(self) -> dict[str, Any]:
        count = len(self.subtasks)
        return {"success": self._completed == count, "completed": self._completed, "instructions": count}

    def _observe(self, observed: Any) -> Observation:
        images = observed["rgb_obs"]
        return {"rgb": prepare_image(np.asarray(images["rgb_static"], np.uint8), self._size),
                "rgb_gripper": prepare_image(np.asarray(images["rgb_gripper"], np.uint8), self._size),
                "robot_obs": np.asarray(observed["robot_obs"], np.float32)}


make = Calvin
