"""Demonstrations in HDF5, as robomimic, MimicGen, RoboCasa and LIBERO write them (robomimic.github.io).

    FILE.hdf5, or a folder of them                 LIBERO: one file per task, NAME_OF_THE_TASK_demo.hdf5
      data             env_args, problem_info      attributes, in JSON
        demo_0         num_samples, ep_meta
          actions      (N, 7)
          rewards, dones                           (N,)
          obs
            agentview_image, agentview_rgb         (N, H, W, 3) uint8
            robot0_eef_pos, ee_states, ...         (N, K)
      mask/train, mask/valid                       names of demonstrations

Each demonstration is a recording and an episode. Defaults:

    camera       agentview_image or agentview_rgb, else the only one
    action       `actions`, if the controller of env_args is robosuite's OSC_POSE with deltas, or the file is LIBERO's
    state        robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos, stored as they are; of LIBERO, ee_states and
                 gripper_states by arms.osc_pose_state
    instruction  ep_meta's lang, problem_info's language_instruction, or the name of LIBERO's file
    splits       mask/train and mask/valid, which becomes "test"

Columns are data sets in `obs` or next to it, as `actions_abs`; several joined or a part of one: `robot0_eef_pos[0:2]`.
Options:

    turn="auto"        images: "none", "flip" (upside down) or "half" (180 degrees); auto: LIBERO's by 180 degrees, as
                       agent_jax.envs.libero and the copies of its data that VLA models train on have them
    filter=""          take only the demonstrations of this mask, as 20_percent
    instructions=""    CSV or JSONL with the columns `name` (the file's, without .hdf5) and `instruction`
    state=True         False: no state
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.paths import Folder
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import check_fields, chosen_cameras, declared_spec, typed_options
from agent_jax.data.prepare.sources.instructions import Instructions
from agent_jax.data.prepare.sources.resampling import Resampling, stride_of
from agent_jax.data.prepare.sources.robomimic.hdf5_file import Hdf5File, open_hdf5
from agent_jax.data.prepare.sources.robomimic.layout import Layout, instruction_of, layout_of, numbered
from agent_jax.data.prepare.sources.selection import Selection, select, selected_columns, selected_shapes
from agent_jax.data.prepare.sources.source import Recording, Schema, Source, SourceEpisode, SourceStep, first_readable

_TURNS: dict[str, tuple[slice, ...]] = {
    "none": (), "flip": (slice(None), slice(None, None, -1)),
    "half": (slice(None), slice(None, None, -1), slice(None, None, -1))}
_SUFFIXES = (".hdf5", ".h5")
_DEFAULT_CAMERAS = ("agentview_image", "agentview_rgb")
_STATES = ("robot0_eef_pos,robot0_eef_quat,robot0_gripper_qpos", "ee_states,gripper_states")  # robomimic's, LIBERO's
_BLOCK_BYTES = 2**24  # of images read at a time
_SPLITS = {"train": "train", "valid": "test"}


@dataclasses.dataclass(frozen=True)
class RobomimicOptions:
    """`config.options` of this source."""

    turn: Literal["auto", "none", "flip", "half"] = "auto"
    filter: str = ""
    instructions: str = ""
    state: bool = True


class RobomimicSource(Source):
    """The demonstrations of a file, or of all files in a folder."""

    def __init__(self, path: Path, config: PrepareConfig):
        self._config = config
        self._options: RobomimicOptions = typed_options(RobomimicOptions, config)
        self._root = path if path.is_dir() else path.parent
        self._files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES) if path.is_dir() else [path]
        if not self._files:
            raise ValueError(f"{path}: found no file *{' or *'.join(_SUFFIXES)}, expected those of robomimic or LIBERO")
        Folder(self._root, config.allow_root).check_links(self._files if path.is_dir() else (), str(path))
        first = first_readable(self._files, _layout, "")
        self._turn = self._options.turn
        if self._turn == "auto":
            self._turn = "half" if first.libero else "none"
        if not first.cameras:
            raise ValueError(f"{first.where}: obs holds no images, uint8 (N, H, W, 3), but {', '.join(first.numbers)}; "
                             "robomimic's dataset_states_to_obs.py writes them, with --camera_names agentview")
        default = next((name for name in _DEFAULT_CAMERAS if name in first.cameras), "")
        self._cameras = chosen_cameras(config, first.cameras, default, first.unusable)
        self.action_spec, action = _action_spec(config, first)
        self.state_spec, state = _state_spec(config, first, keep=self._options.state)
        self._actions = {key: select(key, config.fields.get(key, "actions" if key == "action" else key), first.numbers,
                                     first.unusable, shape) for key, (shape, _) in action.fields.items()}
        self._observations = _state_selections(config, first, state, keep=self._options.state)
        self._numbers = self._actions | self._observations
        check_fields(config, self._numbers)
        self._resampling = Resampling(config, stride_of(config, first.rate_hz), first.rate_hz, action,
                                      absolute=action.absolute)
        self.rate_hz = self._resampling.rate_hz
        turned = () if self._turn == "none" else (
            f"images: {'flipped upside down' if self._turn == 'flip' else 'turned by half a turn'}"
            f"{', as LIBERO stores them upside down' if first.libero else ''} (config.options.turn={self._turn})",)
        self.schema = Schema({name: first.cameras[camera] for name, camera in self._cameras.items()}, action.fields,
                             selected_shapes(self._observations, state), notes=(*turned, *self._resampling.notes))
        given = self._options.instructions or config.instruction_text
        self._instructions = Instructions(self._root, self._options.instructions, config) if given else None

    def recordings(self) -> list[Recording]:
        """The demonstrations, by file and number."""
        found: list[Recording] = []
        for file in self._files:
            with open_hdf5(file) as content:
                demos = numbered(content.names("data"))
                splits = self._splits(content)
                if self._options.filter:
                    demos = self._filtered(content, demos)
                size = file.stat().st_size // max(len(demos), 1)
                found += [Recording(f"{self._name(file)}/{demo}", str(file), splits.get(demo, ""), max(size, 1),
                                    {"file": str(file), "demo": demo}) for demo in demos]
        return found

    def files(self, recording: Recording) -> Iterator[Path]:
        """The file, and the table of instructions."""
        yield Path(recording.detail["file"])
        yield from self._instructions.files if self._instructions else ()

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """The episode, whose data must agree in length, and in shape with the first demonstration."""
        demo, file = f"data/{recording.detail['demo']}", Path(recording.detail["file"])
        with open_hdf5(file) as content:
            count = self._length(content, demo)
            if self._instructions:
                text = self._instructions.text(self._name(file))
            else:
                text = instruction_of(content, demo, self._config.instruction)
            done = content.dataset(f"{demo}/dones")
            terminal = done is not None and done.shape == (count,) and bool(content.rows("dones", done)[-1])
            yield SourceEpisode(recording.name, text, self._steps(content, demo, count), terminal=terminal)

    def _name(self, file: Path) -> str:
        return file.relative_to(self._root).with_suffix("").as_posix()

    def _splits(self, content: Hdf5File) -> dict[str, str]:
        """Split by demonstration, if the file has both masks."""
        masks = {mask: content.texts(f"mask/{mask}") for mask in _SPLITS}
        if not all(masks.values()):
            return {}
        both = set(masks["train"]) & set(masks["valid"])
        if both:
            raise BadDataError(f"{content.path}, mask: {min(both)!r} is in both train and valid, expected one")
        listed = {demo: _SPLITS[mask] for mask, demos in masks.items() for demo in demos}
        return {demo: listed.get(demo, "train") for demo in content.names("data")}

    def _filtered(self, content: Hdf5File, demos: list[str]) -> list[str]:
        chosen = set(content.texts(f"mask/{self._options.filter}"))
        if not chosen & set(demos):
            raise BadDataError(f"config.options.filter={self._options.filter!r}: {content.path} has no such mask, "
                               f"or none of its demonstrations; it has {', '.join(content.names('mask')) or 'none'}")
        return [demo for demo in demos if demo in chosen]

    def _length(self, content: Hdf5File, demo: str) -> int:
        """Steps of a demonstration; all selected data must agree on it."""
        paths = {_path(content, demo, name) for name in selected_columns(self._numbers)}
        paths |= {f"{demo}/obs/{camera}" for camera in self._cameras.values()}
        lengths = {}
        for path in sorted(paths):
            dataset = content.dataset(path)
            if dataset is None or not dataset.shape:
                raise BadDataError(f"{content.path}, {path}: not found, as in the first demonstration; {demo} has "
                                   f"{', '.join([*content.names(demo), *content.names(f'{demo}/obs')])[:500]}")
            lengths[path] = dataset.shape[0]
        stated = content.number(demo, "num_samples")
        if stated is not None:
            lengths["attribute num_samples"] = int(stated)
        count = next(iter(lengths.values()))
        other = next((f"{path} {length}" for path, length in lengths.items() if length != count), "")
        if other or not count:
            raise BadDataError(f"{content.path}, {demo}: {next(iter(lengths))} has {count} steps{other and ', but '}"
                               f"{other}; expected as many of each, and one at least")
        return count

    def _steps(self, content: Hdf5File, demo: str, count: int) -> Iterator[SourceStep]:
        columns = {name: self._column(content, demo, name) for name in selected_columns(self._numbers)}
        reward = content.dataset(f"{demo}/rewards")
        rewards = None if reward is None or reward.shape != (count,) else content.rows(f"{demo}/rewards", reward)
        images = {name: self._images(content, f"{demo}/obs/{camera}", self.schema.cameras[name], count)
                  for name, camera in self._cameras.items()}
        yield from self._resampling.steps(
            count, images, {key: selection.values(columns) for key, selection in self._actions.items()},
            {key: selection.values(columns) for key, selection in self._observations.items()}, rewards)

    def _column(self, content: Hdf5File, demo: str, name: str) -> np.ndarray:
        """(steps, numbers) of a data set."""
        path = _path(content, demo, name)
        dataset = content.dataset(path)
        assert dataset is not None, "_length has checked it"
        array = content.rows(path, dataset)
        array = array[:, None] if array.ndim == 1 else array
        width = max(stop for selection in self._numbers.values() for part, _, stop in selection.parts if part == name)
        if array.ndim != 2 or array.shape[1] < width:
            raise BadDataError(f"{content.path}, {path}: found shape {list(dataset.shape)}, expected [{len(array)}, "
                               f"{width}] as in the first demonstration")
        return array

    def _images(self, content: Hdf5File, path: str, size: tuple[int, int],
                count: int) -> Iterator[bytes | np.ndarray]:
        """The image of every step that is kept, upright."""
        dataset = content.dataset(path)
        assert dataset is not None, "_length has checked it"
        if dataset.shape != (count, *size, 3) or dataset.dtype != np.uint8:
            raise BadDataError(f"{content.path}, {path}: found {dataset.dtype}{list(dataset.shape)}, expected "
                               f"uint8{[count, *size, 3]} as in the first demonstration")
        stride = self._resampling.stride
        block = max(1, _BLOCK_BYTES // (size[0] * size[1] * 3)) * stride
        for first in range(0, count, block):
            pixels = content.rows(path, dataset, slice(first, min(first + block, count), stride))
            yield from np.ascontiguousarray(pixels[_TURNS[self._turn]])


def _layout(file: Path) -> Layout:
    with open_hdf5(file) as content:
        return layout_of(content)


def _action_spec(config: PrepareConfig, first: Layout) -> tuple[dict[str, Any], ActionSpec]:
    """The spec as stored, and with closed bounds."""
    declared = declared_spec(ActionSpec, config.action_spec)
    if declared:
        return dict(config.action_spec), declared
    other = config.fields.get("action", "actions")
    if not first.own_action or other != "actions":
        raise ValueError(f"{first.where}: the file does not define the meaning of the numbers of {other!r} "
                         f"({first.why_no_action or 'it is not `actions`'}); give config.action_spec, as made by "
                         "arms.arm_spec(NAME, names=(...), low=..., high=..., absolute=...)")
    return first.own_action, ActionSpec.from_dict(first.own_action)


def _state_spec(config: PrepareConfig, first: Layout, *, keep: bool) -> tuple[dict[str, Any], StateSpec | None]:
    """The spec as stored, and with closed bounds; {} and None if the state is stored as it is, or not at all."""
    if config.state_spec:
        return dict(config.state_spec), declared_spec(StateSpec, config.state_spec)
    if keep and first.own_state and "state" not in config.fields:
        return first.own_state, StateSpec.from_dict(first.own_state)
    return {}, None


def _state_selections(config: PrepareConfig, first: Layout, state: StateSpec | None, *,
                      keep: bool) -> dict[str, Selection]:
    default = next((text for text in _STATES if all(name in first.numbers for name in text.split(","))), "")
    if state:
        return {key: select(key, config.fields.get(key, default if key == "state" else key), first.numbers,
                            first.unusable, shape) for key, (shape, _) in state.fields.items()}
    text = config.fields.get("state", default if keep else "")
    return {"state": select("state", text, first.numbers, first.unusable)} if text else {}


def _path(content: Hdf5File, demo: str, name: str) -> str:
    """The path of a column: in obs, or next to it."""
    return f"{demo}/obs/{name}" if content.dataset(f"{demo}/obs/{name}") is not None else f"{demo}/{name}"
