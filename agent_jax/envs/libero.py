"""LIBERO (Liu et al. 2023, arXiv 2306.03310) from the user's checkout: 130 tasks of a robot arm, in five suites.

    AGENT_JAX_LIBERO=DIR     git clone https://github.com/Lifelong-Robot-Learning/LIBERO DIR

"libero_goal/3" is the fourth task of a suite. An episode begins in the task's initial state `seed % 50` with five steps
of standing still, as in the repository's evaluation. Images are rotated by 180 degrees, as in the copies of its data
that VLA models are trained on. The simulator's images begin with the lowest row, so the result is upright and mirrored.
"""

from __future__ import annotations

import atexit
import difflib
import functools
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions.simulators import LIBERO, LIBERO_STATE
from agent_jax.data.images import prepare_image
from agent_jax.envs import Action, Observation
from agent_jax.envs.arm import hand_move
from agent_jax.envs.checkout import Checkout
from agent_jax.envs.random_actions import uniform_actions

CHECKOUT = Checkout(
    name="libero",
    variable="AGENT_JAX_LIBERO",
    url="https://github.com/Lifelong-Robot-Learning/LIBERO",
    marker="libero/libero/benchmark/__init__.py",
    roots=(".",),
    install="pip install torch robosuite==1.4.0 bddl==1.0.1 mujoco==3.3.0 future easydict gym cloudpickle matplotlib",
)


def _write_libero_config() -> None:
    """Point LIBERO to its checkout unless LIBERO_CONFIG_PATH is set; without it, importing LIBERO asks on stdin."""
    if "LIBERO_CONFIG_PATH" in os.environ:
        return
    root = CHECKOUT.directory().resolve() / "libero" / "libero"
    folder = tempfile.mkdtemp(prefix="agent_jax_libero_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files",
             "datasets": root.parent / "datasets", "assets": root / "assets"}
    # JSON is also YAML.
    Path(folder, "config.yaml").write_text(json.dumps({name: str(path) for name, path in paths.items()}))
    os.environ["LIBERO_CONFIG_PATH"] = folder


os.environ.setdefault("MUJOCO_GL", "egl")  # renders without a display; read when robosuite is imported
_write_libero_config()
benchmark = CHECKOUT.module("libero.libero.benchmark")
environments = CHECKOUT.module("libero.libero.envs")

NAME = "libero"
ACTION_SPEC = LIBERO
STATE_SPEC = LIBERO_STATE
STATE_SHAPES = {}
CAMERAS = ("rgb", "wrist")  # agentview and robot0_eye_in_hand
_SUITES = {"libero_goal": 10, "libero_spatial": 10, "libero_object": 10, "libero_10": 10, "libero_90": 90}
TASKS = {suite: tuple(f"{suite}/{number}" for number in range(count)) for suite, count in _SUITES.items()}
MAX_STEPS = 600  # the repository's configs/eval/default.yaml
IMAGE_SIZE = 224
IMAGE_SHAPES = {"rgb": (128, 128, 3), "wrist": (128, 128, 3)}
ONE_A_PROCESS = False
HAS_EXPERT = False
RANDOM = {"random": uniform_actions(LIBERO)}
NOISE = RANDOM["random"]
_SETTLING_STEPS = 5  # without motion, until the objects come to rest


version = CHECKOUT.version
action_name = functools.partial(hand_move, mm=50, opens=False)


class Libero:
    """Observations: {"rgb", "wrist": uint8 (size, size, 3), "state": float32 (8,): position, axis-angle, fingers}."""

    def __init__(self, level: str, image_size: int = IMAGE_SIZE) -> None:
        suite, _, number = level.partition("/")
        if suite not in _SUITES or not number.isdigit() or int(number) >= _SUITES[suite]:
            near = difflib.get_close_matches(suite, _SUITES, n=1) or list(_SUITES)
            raise ValueError(f"task: found {level!r}, expected SUITE/NUMBER, e.g. {near[0]}/0 to "
                             f"{near[0]}/{_SUITES[near[0]] - 1}; suites are {', '.join(_SUITES)}")
        self.level, self._size, self._steps = level, image_size, 0
        tasks = benchmark.get_benchmark(suite)()
        self.instruction = str(tasks.get_task(int(number)).language)
        self._states = _initial_states(tasks, int(number))
        size = image_size or IMAGE_SHAPES["rgb"][0]
        self.simulator: Any = environments.OffScreenRenderEnv(
            bddl_file_name=tasks.get_task_bddl_file_path(int(number)), camera_heights=size, camera_widths=size)

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begin in initial state `seed % 50`."""
        self.simulator.seed(seed % 2**32)
        self.simulator.reset()
        observed = self.simulator.set_init_state(self._states[seed % len(self._states)])
        for _ in range(_SETTLING_STEPS):
            observed, *_ = self.simulator.step(np.zeros(7))
        self._steps = 0
        return self._observe(observed), {"success": False}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take {"action": (7,)}, clipped to [-1, 1]."""
        observed, reward, done, _ = self.simulator.step(np.clip(np.asarray(action["action"], np.float64), -1, 1))
        self._steps += 1
        success = bool(done) or bool(self.simulator.check_success())
        return self._observe(observed), float(reward), success, not success and self._steps >= MAX_STEPS, {
            "success": success}

    def close(self) -> None:
        """End the simulator."""
        self.simulator.close()

    def _observe(self, observed: Any) -> Observation:
        images = {name: prepare_image(np.ascontiguousarray(np.asarray(observed[key], np.uint8)[::-1, ::-1]), self._size)
                  for name, key in (("rgb", "agentview_image"), ("wrist", "robot0_eye_in_hand_image"))}
        state = (observed["robot0_eef_pos"], _axis_angle(observed["robot0_eef_quat"]), observed["robot0_gripper_qpos"])
        return {**images, "state": np.concatenate(state).astype(np.float32)}


make = Libero


def _initial_states(tasks: Any, number: int) -> Any:
    """The task's initial states (50, size of a simulator state)."""
    # The repository reads them by torch.load, which since torch 2.6 reads only allowed types: here NumPy arrays.
    make = np.zeros(0).__reduce__()[0]
    names = [(make, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]  # numpy 1 and 2
    allowed = [np.ndarray, np.dtype, np.dtypes.Float64DType, *names]
    with CHECKOUT.module("torch").serialization.safe_globals(allowed):
        return np.asarray(tasks.get_task_init_states(number))


def _axis_angle(quaternion: Any) -> np.ndarray:
    """Rotation vector of a unit quaternion (x, y, z, w), as in robosuite's `quat2axisangle`."""
    x, y, z, w = (float(number) for number in quaternion)
    w = min(1.0, max(-1.0, w))
    length = math.sqrt(1 - w * w)
    if length < 1e-8:
        return np.zeros(3)
    return np.array([x, y, z]) * (2 * math.acos(w) / length)
