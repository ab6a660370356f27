"""CALVIN (Mees et al. 2022, arXiv 2112.03227) from a checkout of one's own: chains of five instructions at a desk.

    AGENT_JAX_CALVIN=DIR          git clone --recurse-submodules https://github.com/mees/calvin DIR
    AGENT_JAX_CALVIN_DATA=DIR     one of its data sets: validation/.hydra/merged_config.yaml describes the scene

    seed -> one of the 1,000 chains -> instruction 1 --done, by the task oracle--> instruction 2 ... 5
                                       at most 360 steps each

"Chains" is the benchmark: the instruction changes within the episode whenever the oracle finds it carried out, and the
episode ends with the first that is not. info["completed"] counts; `chain_figures` makes the benchmark's numbers of it.
A policy that remembers forgets at every new instruction there, as CALVIN's protocol has it. "First" is the first
instruction alone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions import CALVIN
from agent_jax.data.transforms import prepare_image
from agent_jax.envs import Action, Observation
from agent_jax.envs.checkout import Checkout
from agent_jax.envs.random_actions import uniform_actions

CHECKOUT = Checkout(
    name="calvin",
    variable="AGENT_JAX_CALVIN",
    url="https://github.com/mees/calvin",
    marker="calvin_models/calvin_agent/evaluation/multistep_sequences.py",
    roots=("calvin_models", "calvin_env", "calvin_env/tacto"),
    install="sh install.sh in DIR (Python 3.8), and dataset/download_data.sh debug for a data set to point "
            "AGENT_JAX_CALVIN_DATA to",
)  # fmt: skip
DATA = "AGENT_JAX_CALVIN_DATA"
CHECKOUT.directory()

NAME = "calvin"
ACTION_SPEC = CALVIN
STATE_SPEC = None  # its bounds come from the data set (actions.calvin_state); observations have its key, robot_obs
CAMERAS = ("rgb", "rgb_gripper")  # rgb_static and rgb_gripper
TASKS = {"CALVIN": ("Chains",), "First": ("First",)}
CHAINS = 1000
SUBTASKS = 5
SUBTASK_STEPS = 360  # evaluate_policy.py: EP_LEN
MAX_STEPS = SUBTASKS * SUBTASK_STEPS
RATE_HZ = 30.0
IMAGE_SIZE = 0
IMAGE_SHAPES = {"rgb": (200, 200, 3), "rgb_gripper": (84, 84, 3)}
HAS_EXPERT = False
RANDOM = {"random": uniform_actions(CALVIN)}
NOISE = RANDOM["random"]


def version() -> str:
    """The checkout has no version of its own."""
    return "calvin (a checkout)"


def action_name(action: Action) -> str:
    """The hand's move in millimetres and the gripper."""
    dx, dy, dz, *_, grip = (float(number) for number in action["action"])
    return f"{20 * dx:+.0f} {20 * dy:+.0f} {20 * dz:+.0f} mm, {'open' if grip > 0 else 'close'}"


def make(level: str, image_size: int = IMAGE_SIZE) -> Calvin:
    """An environment of "Chains" or "First"; reset it before use.

    Raises:
        ValueError: there is no such task.
        FileNotFoundError: AGENT_JAX_CALVIN_DATA leads to no data set.
    """
    return Calvin(level, image_size)


def Expert(environment: Any) -> Any:
    """There is none.

    Raises:
        ValueError: always.
    """
    del environment
    raise ValueError("calvin has no scripted expert; its recorded data are prepared by `python -m agent_jax.data "
                     "prepare` with source calvin")


def chain_figures(completed: Sequence[int]) -> dict[str, float]:
    """The benchmark's numbers: the share of chains with at least 1, ..., 5 instructions done, and their mean."""
    counts = np.asarray(completed)
    return {**{f"{k} in a row": float((counts >= k).mean()) for k in range(1, SUBTASKS + 1)},
            "mean length": float(counts.mean())}


@functools.cache
def _chains() -> list[Any]:
    """The 1,000 pairs of initial state and five subtasks; the repository makes them anew in every process."""
    return CHECKOUT.module("calvin_agent.evaluation.multistep_sequences").get_sequences(CHAINS)


def _scene() -> Path:
    """The validation split that describes the scene."""
    value = os.environ.get(DATA, "")
    folder = Path(value).expanduser() / "validation"
    if not value or not (folder / ".hydra" / "merged_config.yaml").is_file():
        raise FileNotFoundError(f'the environment "calvin" needs a data set: {DATA}={value or "(not set)"}, expected a '
                                f"directory with validation/.hydra/merged_config.yaml. {CHECKOUT}")
    return folder


class Calvin:
    """Observations: {"rgb": uint8 (200, 200, 3), "rgb_gripper": uint8 (84, 84, 3), "robot_obs": float32 (15,)}."""

    def __init__(self, level: str, image_size: int) -> None:
        if level not in ("Chains", "First"):
            raise ValueError(f'task: found {level!r}, expected "Chains" (five instructions) or "First" (one alone)')
        self.level, self._size = level, image_size
        self.simulator: Any = CHECKOUT.module("calvin_env.envs.play_table_env").get_env(_scene(), show_gui=False)
        configuration = CHECKOUT.directory() / "calvin_models" / "conf"
        load = CHECKOUT.module("omegaconf").OmegaConf.load
        tasks = load(configuration / "callbacks/rollout/tasks/new_playtable_tasks.yaml")
        self._oracle: Any = CHECKOUT.module("hydra.utils").instantiate(tasks)
        self._sentences: Any = load(configuration / "annotations/new_playtable_validation.yaml")
        self._initial = CHECKOUT.module("calvin_agent.evaluation.utils").get_env_state_for_initial_condition
        self.subtasks: tuple[str, ...] = ()
        self._completed = self._steps = 0
        self._before: Any = None

    @property
    def instruction(self) -> str:
        """Of the current subtask: the benchmark's sentence for it."""
        return str(self._sentences[self.subtasks[min(self._completed, len(self.subtasks) - 1)]][0])

    @property
    def max_steps(self) -> int:
        """Steps after which the episode is over whatever happens."""
        return SUBTASK_STEPS * (SUBTASKS if self.level == "Chains" else 1)

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin chain `seed % 1000`."""
        condition, subtasks = _chains()[seed % CHAINS]
        self.subtasks = tuple(subtasks) if self.level == "Chains" else tuple(subtasks[:1])
        robot, scene = self._initial(condition)
        self.simulator.reset(robot_obs=robot, scene_obs=scene)
        self._completed = self._steps = 0
        self._before = self.simulator.get_info()
        return self._observe(self.simulator.get_obs()), {"success": False, "completed": 0}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take {"action": (7,)}; reward 1 whenever a subtask is done.

        The numbers are clipped to the ActionSpec's bounds, and the gripper to -1 (close) or 1 (open), which the
        simulator insists on.
        """
        move = np.clip(np.asarray(action["action"], np.float64), -1, 1)
        move[6] = 1 if move[6] > 0 else -1
        seen, _, _, info = self.simulator.step(move)
        self._steps += 1
        done = bool(self._oracle.get_task_info_for_set(self._before, info, {self.subtasks[self._completed]}))
        if done:
            self._completed, self._steps, self._before = self._completed + 1, 0, info
        success = self._completed == len(self.subtasks)
        late = not done and self._steps >= SUBTASK_STEPS
        return self._observe(seen), float(done), success, late, {"success": success, "completed": self._completed}

    def close(self) -> None:
        """End the physics server."""
        self.simulator.close()

    def _observe(self, seen: Any) -> Observation:
        images = seen["rgb_obs"]
        return {"rgb": prepare_image(np.asarray(images["rgb_static"], np.uint8), self._size),
                "rgb_gripper": prepare_image(np.asarray(images["rgb_gripper"], np.uint8), self._size),
                "robot_obs": np.asarray(seen["robot_obs"], np.float32)}
