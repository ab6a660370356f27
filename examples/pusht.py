"""PushT (Chi et al. 2023, arXiv 2303.04137) from the package gym-pusht, as an example of your own environment.

    pip install gym-pusht
    python -m agent_jax.envs.collect examples/pusht.py --task touch-t --episodes 200 --out DIR
    python -m agent_jax.evaluate closed-loop --checkpoint DIR --env examples/pusht.py --task push-t

A blue disc on a table of 512 x 512 pixels pushes a grey T. Two tasks:

    push-t     push it onto its green outline: 95% covered within 300 steps. The published task; human recordings
               are in lerobot/pusht on the Hugging Face hub
    touch-t    touch it within 10 steps. It has an expert, so you can try every step without recordings
"""

import importlib.metadata
from typing import Any

import gym_pusht  # noqa: F401 (registers the environment)
import gymnasium
import numpy as np

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.config import presets

SIDE = 512.0  # pixels of the table, for any image size

NAME = "pusht"
# Target position of the disc in absolute pixels, which pulls it like a spring; 10 a second. 65 bins: every 8 pixels.
ACTION_SPEC = ActionSpec.from_dict(presets.arm_spec(
    "pusht", names=("x", "y"), low=0.0, high=SIDE, unit="px", rate_hz=10.0, frame="table, from its top left corner",
    absolute=True, count=65))
STATE_SPEC = StateSpec.from_dict(presets.state_spec(
    "pusht", key="agent_pos", names=("x", "y"), low=0.0, high=SIDE, unit="px", frame="table", count=65))
TASKS = {"PushT": ("push-t",), "Touch": ("touch-t",)}
INSTRUCTIONS = {"push-t": "push the T onto its outline", "touch-t": "touch the T"}
STEPS = {"push-t": 300, "touch-t": 10}
IMAGE_SIZE = 96  # as in the published data


class PushT:
    """One task. Observations: {"rgb": uint8 (size, size, 3), "agent_pos": float32 (2,)}."""

    def __init__(self, task: str, image_size: int) -> None:
        if task not in INSTRUCTIONS:
            raise ValueError(f"task: found {task!r}, expected one of {', '.join(INSTRUCTIONS)}")
        self.task = task
        self.instruction = INSTRUCTIONS[task]
        made = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos", disable_env_checker=True,
                              observation_width=image_size, observation_height=image_size)
        self.simulator: Any = made.unwrapped  # without gymnasium's step limit
        self._steps = 0

    def reset(self, *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin the episode of `seed`, which sets the positions of disc and T."""
        observed, _ = self.simulator.reset(seed=seed)
        self._steps = 0
        return self._observation(observed), {"success": False}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Pull the disc towards {"action": (x, y)} for a tenth of a second."""
        observed, reward, pushed, _, info = self.simulator.step(np.asarray(action["action"], np.float64))
        self._steps += 1
        success = bool(pushed) if self.task == "push-t" else info["n_contacts"] > 0
        return (self._observation(observed), float(reward), success, self._steps >= STEPS[self.task],
                {"success": success, "coverage": info["coverage"]})

    def close(self) -> None:
        """Close the simulator."""
        self.simulator.close()

    def _observation(self, observed: Any) -> dict[str, np.ndarray]:
        return {"rgb": observed["pixels"], "agent_pos": observed["agent_pos"].astype(np.float32)}


make = PushT


class Expert:
    """Goes to the T; fails at "push-t", which has no expert."""

    def __init__(self, environment: PushT) -> None:
        self._simulator = environment.simulator
        self.failed = environment.task != "touch-t"

    def act(self, taken: Any = None) -> dict[str, np.ndarray]:
        """The T's position as the target; it depends on the current state, so `taken` is not read."""
        return {"action": np.clip(np.array(self._simulator.block.position), 0, SIDE).astype(np.float32)}


def action_name(action: Any) -> str:
    """The target as text."""
    x, y = np.asarray(action["action"])
    return f"to {x:.0f}, {y:.0f}"


def version() -> str:
    """Name and version of the simulator."""
    return f"gym-pusht {importlib.metadata.version('gym-pusht')}"
