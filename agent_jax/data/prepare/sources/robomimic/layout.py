"""The layout of an HDF5 file of demonstrations: cameras, columns, controller, instruction; see robomimic.py."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from agent_jax.actions import arms
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.robomimic.hdf5_file import Hdf5File

_CONTROLLER = "OSC_POSE"  # robosuite's: deltas of position and rotation, in [-1, 1]
_LIBERO_HZ = 20.0  # control_freq of its environments
_MAX_HZ = 10_000
_SCENE = re.compile(r"^[A-Z_]*SCENE\d+_")  # KITCHEN_SCENE3_turn_on_the_stove
_MAX_AXES = 2  # of a step's numbers, exclusive


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of the first demonstration of a file."""

    where: str
    libero: bool
    rate_hz: float  # 0: unknown
    cameras: Mapping[str, tuple[int, int]]  # height and width
    numbers: Mapping[str, tuple[int, ...]]  # shape per step, by data set
    unusable: Mapping[str, str]  # reasons why others cannot be used
    own_action: dict[str, Any]  # ActionSpec.to_dict() of `actions`; {}: unknown
    own_state: dict[str, Any]
    why_no_action: str


def numbered(names: list[str]) -> list[str]:
    """Demonstrations in the order of their numbers: demo_2 before demo_10."""
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in
                                           re.split(r"(\d{1,9})", name)])


def layout_of(content: Hdf5File) -> Layout:
    """The layout of a file.

    Raises:
        BadDataError: the file holds no demonstrations, or none that can be read.
    """
    demos = numbered(content.names("data"))
    if not demos:
        raise BadDataError(f"{content.path}: found {', '.join(content.names(''))[:200] or 'nothing'}, expected a group "
                           "`data` of demonstrations, as in robomimic and LIBERO")
    demo = f"data/{demos[0]}"
    cameras, numbers, unusable = _columns(content, demo)
    libero = bool(content.text("data", "problem_info")) or "agentview_rgb" in cameras
    arguments = content.json("data", "env_args").get("env_kwargs")
    arguments = arguments if isinstance(arguments, dict) else {}
    rate = arguments.get("control_freq")
    rate_hz = _LIBERO_HZ if libero else 0.0
    if isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < _MAX_HZ:
        rate_hz = float(rate)
    why = _why_no_action(arguments, numbers.get("actions"), libero=libero)
    name = "libero" if libero else "robosuite"
    state = libero and (numbers.get("ee_states"), numbers.get("gripper_states")) == ((6,), (2,))
    return Layout(f"{content.path}, {demo}", libero, rate_hz, cameras, numbers, unusable,
                  {} if why else arms.osc_pose_spec(name, rate_hz=rate_hz),
                  arms.osc_pose_state(name) if state else {}, why)


def instruction_of(content: Hdf5File, demo: str, attribute: str = "") -> str:
    """The instruction in a text attribute of a demonstration or of `data`; "": the known attributes are searched.

    Raises:
        BadDataError: the file holds no instruction.
    """
    if attribute:
        found = content.text(demo, attribute) or content.text("data", attribute)
    else:
        problem = content.json("data", "problem_info").get("language_instruction")
        found = content.json(demo, "ep_meta").get("lang") or problem or content.text(demo, "language_instruction")
    if isinstance(found, list) and all(isinstance(part, str) for part in found):
        found = "".join(found) if any(" " in part for part in found) else " ".join(found)
    if isinstance(found, str) and found.strip().strip('"').strip():
        return found.strip().strip('"').strip()
    stem = content.path.stem
    if not attribute and stem.endswith("_demo") and content.dataset(f"{demo}/obs/agentview_rgb") is not None:
        return _SCENE.sub("", stem.removesuffix("_demo")).replace("_", " ").strip()
    raise BadDataError(f"{content.path}, {demo}: holds no instruction"
                       + (f" in the attribute {attribute!r}" if attribute else "")
                       + "; give one for all by config.instruction_text, a table of one for each file by "
                       "config.options.instructions, or the attribute that holds it by config.instruction")


def _columns(content: Hdf5File, demo: str) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, ...]],
                                                    dict[str, str]]:
    """Cameras, columns of numbers, and the reasons why others are neither."""
    cameras: dict[str, tuple[int, int]] = {}
    numbers: dict[str, tuple[int, ...]] = {}
    unusable: dict[str, str] = {}
    for group in (demo, f"{demo}/obs"):
        for name in content.names(group):
            try:
                dataset = content.dataset(f"{group}/{name}")
            except BadDataError as error:
                unusable[name] = str(error)
                continue
            if dataset is None or not dataset.shape:
                continue
            step = tuple(dataset.shape[1:])
            if len(step) == 3 and step[2] == 3 and dataset.dtype == np.uint8 and group.endswith("/obs"):
                cameras[name] = step[0], step[1]
            elif len(step) < _MAX_AXES:
                numbers[name] = step or (1,)
            else:
                unusable[name] = f"it holds {dataset.dtype}{list(dataset.shape)}, neither images (N, H, W, 3) of " \
                                 "uint8 nor vectors"
    return cameras, numbers, unusable


def _why_no_action(arguments: Mapping[str, Any], shape: tuple[int, ...] | None, *, libero: bool) -> str:
    """The reason why `actions` are not seven deltas in [-1, 1]; "": they are."""
    if shape != (7,):
        return f"actions have shape {list(shape) if shape else 'none'}, not 7 numbers"
    controller = arguments.get("controller_configs")
    if not isinstance(controller, dict):
        return "" if libero else "env_args names no controller"
    arms = controller.get("body_parts")  # since robosuite 1.5
    arm = arms.get("right") if isinstance(arms, dict) else controller
    controller = arm if isinstance(arm, dict) else {}
    kind = str(controller.get("type"))[:100]
    deltas = controller.get("control_delta", controller.get("input_type", "delta") == "delta")
    if kind != _CONTROLLER or deltas is not True:
        of_targets = "" if deltas is True else " of targets"
        return f"the controller of env_args is {kind}{of_targets}, not {_CONTROLLER} of deltas"
    return ""
