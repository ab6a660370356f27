"""Small HDF5 files of demonstrations in the layouts of robomimic's dataset_states_to_obs.py and LIBERO's recorder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

STEPS = {"demo_0": 6, "demo_1": 5, "demo_2": 7, "demo_10": 4}
ROBOSUITE = {"env_name": "Lift", "type": 1, "env_version": "1.4.1", "env_kwargs": {
    "robots": ["Panda"], "control_freq": 20, "camera_names": ["agentview"],
    "controller_configs": {"type": "OSC_POSE", "input_max": 1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
                           "control_delta": True}}}
LANGUAGE = "turn on the stove"


def pixels(number: int, steps: int, side: int = 16) -> np.ndarray:
    """Images that differ by corner, demonstration and step; the first row is stored first."""
    images = np.zeros((steps, side, side, 3), np.uint8)
    images[:, : side // 2, : side // 2] = 250  # top left, as stored
    images[:, side // 2 :, :] = (np.arange(steps)[:, None, None, None] * 10 + number)
    return images


def numbers(number: int, steps: int, width: int) -> np.ndarray:
    """Numbers in [-0.5, 0.5], different at every place."""
    return np.random.default_rng((number, width)).uniform(-0.5, 0.5, (steps, width))


def _demo(data: h5py.Group, name: str, steps: int, observed: dict[str, np.ndarray]) -> h5py.Group:
    number = int(name.removeprefix("demo_"))
    demo = data.create_group(name)
    demo.attrs["num_samples"] = steps
    demo.attrs["model_file"] = "<mujoco/>"
    demo.create_dataset("actions", data=numbers(number, steps, 7))
    demo.create_dataset("states", data=numbers(number, steps, 32))
    demo.create_dataset("rewards", data=np.eye(steps)[-1])
    demo.create_dataset("dones", data=np.eye(steps, dtype=np.int64)[-1])
    for key, value in observed.items():
        demo.create_dataset(f"obs/{key}", data=value, compression="gzip" if value.ndim > 2 else None)
    return demo


def robomimic_file(path: Path, env_args: dict[str, Any] = ROBOSUITE, masks: bool = True) -> Path:
    """A file in the layout of robomimic and MimicGen; images are upright."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"], data.attrs["env_args"] = sum(STEPS.values()), json.dumps(env_args)
        for name, steps in STEPS.items():
            number = int(name.removeprefix("demo_"))
            demo = _demo(data, name, steps, {
                "agentview_image": pixels(number, steps), "robot0_eye_in_hand_image": 255 - pixels(number, steps),
                "agentview_depth": np.ones((steps, 16, 16, 1), np.float32),
                "robot0_eef_pos": numbers(number, steps, 3), "robot0_eef_quat": numbers(number, steps, 4),
                "robot0_gripper_qpos": numbers(number, steps, 2) / 20, "object": numbers(number, steps, 10)})
            demo.create_dataset("actions_abs", data=numbers(number, steps, 7) * 3)
            demo.create_dataset("next_obs/agentview_image", data=pixels(number, steps))
        if masks:
            for mask, names in {"train": ["demo_0", "demo_2", "demo_10"], "valid": ["demo_1"],
                                "half": ["demo_2", "demo_1"]}.items():
                file.create_dataset(f"mask/{mask}", data=np.array(names, dtype="S"))
    return path


def libero_file(folder: Path, name: str = "KITCHEN_SCENE3_turn_on_the_stove", language: str = LANGUAGE) -> Path:
    """A file in the layout of LIBERO's create_dataset.py: images begin with the lowest row, mirrored."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}_demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["bddl_file_name"] = f"libero/bddl_files/{name}.bddl"
        data.attrs["env_args"] = json.dumps({"type": 1, "env_name": "Libero_Kitchen_Tabletop_Manipulation",
                                             "problem_name": "libero_kitchen_tabletop_manipulation",
                                             "env_kwargs": {"robots": ["Panda"], "control_freq": 20,
                                                            "controller_configs": ROBOSUITE["env_kwargs"]
                                                            ["controller_configs"]}})
        if language:
            data.attrs["problem_info"] = json.dumps({"problem_name": "p", "domain_name": "robosuite",
                                                     "language_instruction": language})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["num_demos"] = 2
        for demo, steps in list(STEPS.items())[:2]:
            number = int(demo.removeprefix("demo_"))
            _demo(data, demo, steps, {
                "agentview_rgb": pixels(number, steps), "eye_in_hand_rgb": 255 - pixels(number, steps),
                "ee_states": numbers(number, steps, 6) + np.array([0, 0, 0.5, 0, 0, 0]),
                "ee_pos": numbers(number, steps, 3), "ee_ori": numbers(number, steps, 3),
                "gripper_states": np.abs(numbers(number, steps, 2)) * np.array([0.08, -0.08]),
                "joint_states": numbers(number, steps, 7)})
    return folder / f"{name}_demo.hdf5"
