"""Demonstrations in HDF5, as robomimic, MimicGen, RoboCasa and LIBERO write them (robomimic.github.io).

    FILE.hdf5, or a folder of them                 LIBERO: a file a task, NAME_OF_THE_TASK_demo.hdf5
      data             env_args, problem_info      attributes, in JSON
        demo_0         num_samples, ep_meta
          actions      (N, 7)
          rewards, dones                           (N,)
          obs
            agentview_image, agentview_rgb         (N, H, W, 3) uint8
            robot0_eef_pos, ee_states, ...         (N, K)
      mask/train, mask/valid                       names of demonstrations

Each demonstration is a recording and an episode. Where the config says nothing:

    camera       agentview_image or agentview_rgb, else the only one
    action       `actions`, if the controller of env_args is robosuite's OSC_POSE of changes, or the file is LIBERO's
    state        robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos, stored as they are; of LIBERO, ee_states and
                 gripper_states by arms.osc_pose_state
    instruction  ep_meta's lang, problem_info's language_instruction, or the name of LIBERO's file
    splits       mask/train and mask/valid, which becomes "test"

Columns are data sets of `obs`, or beside it, as `actions_abs`; several joined or a part of one: `robot0_eef_pos[0:2]`.
Options:

    turn="auto"        images: "none", "flip" (upside down) or "half" (half a turn); auto: LIBERO's by half a turn, as
                       agent_jax.envs.libero and the copies of its data that VLA models train on have them
    filter=""          take only the demonstrations of this mask, as 20_percent
    instructions=""    CSV or JSONL with the columns `name` (the file's, without .hdf5) and `instruction`
    state=True         False: no state
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.data.paths import Folder
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import check_fields, checked_options, chosen_cameras, declared_spec
from agent_jax.data.prepare.sources.instructions import Instructions
from agent_jax.data.prepare.sources.resampling import Resampling, stride_of
from agent_jax.data.prepare.sources.robomimic.hdf5_file import Hdf5File, open_hdf5
from agent_jax.data.prepare.sources.robomimic.layout import Layout, instruction_of, layout_of, numbered
from agent_jax.data.prepare.sources.selection import Selection, select
from agent_jax.data.prepare.sources.source import BadDataError, Recording, Schema, SourceEpisode, SourceStep

_OPTIONS = {"turn": "auto", "filter": "", "instructions": "", "state": True}
_TURNS: dict[str, tuple[slice, ...]] = {
    "none": (), "flip": (slice(None), slice(None, None, -1)),
    "half": (slice(None), slice(None, None, -1), slice(None, None, -1))}
_SUFFIXES = (".hdf5", ".h5")
_DEFAULT_CAMERAS = ("agentview_image", "agentview_rgb")
_STATES = ("robot0_eef_pos,robot0_eef_quat,robot0_gripper_qpos", "ee_states,gripper_states")  # robomimic's, LIBERO's
_BLOCK_BYTES = 2**24  # of images that are read at a time
_SPLITS = {"train": "train", "valid": "test"}


@dataclasses.dataclass(frozen=True)
class RobomimicSource:
    """Opened files of demonstrations."""

    schema: Schema
    action_spec: Mapping[str, Any]
    state_spec: Mapping[str, Any]
    rate_hz: float
    _root: Path
    _files: tuple[Path, ...]
    _config: PrepareConfig
    _options: Mapping[str, Any]
    _cameras: Mapping[str, str]
    _numbers: Mapping[str, Selection]
    _resampling: Resampling
    _instructions: Instructions | None

    def recordings(self) -> list[Recording]:
        """The demonstrations, by file and number."""
        found: list[Recording] = []
        for file in self._files:
            with open_hdf5(file) as content:
                demos = numbered(content.names("data"))
                splits = self._splits(content)
                if self._options["filter"]:
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
        """The episode.

        Raises:
            BadDataError: something is missing, damaged, of another length or shape than the rest, or in another file.
        """
        demo, file = f"data/{recording.detail['demo']}", Path(recording.detail["file"])
        with open_hdf5(file) as content:
            count = self._length(content, demo)
            if self._instructions:
                text = self._instructions.of(self._name(file))
            else:
                text = instruction_of(content, demo, self._config.instruction)
            done = content.dataset(f"{demo}/dones")
            terminal = done is not None and done.shape == (count,) and bool(content.rows("dones", done)[-1])
            yield SourceEpisode(recording.name, text, self._steps(content, demo, count), terminal=terminal)

    def _name(self, file: Path) -> str:
        return file.relative_to(self._root).with_suffix("").as_posix()

    def _splits(self, content: Hdf5File) -> dict[str, str]:
        """Split by demonstration, where the file has both masks."""
        masks = {mask: content.texts(f"mask/{mask}") for mask in _SPLITS}
        if not all(masks.values()):
            return {}
        both = set(masks["train"]) & set(masks["valid"])
        if both:
            raise BadDataError(f"{content.path}, mask: {min(both)!r} is in both train and valid, expected one")
        listed = {demo: _SPLITS[mask] for mask, demos in masks.items() for demo in demos}
        return {demo: listed.get(demo, "train") for demo in content.names("data")}

    def _filtered(self, content: Hdf5File, demos: list[str]) -> list[str]:
        chosen = set(content.texts(f"mask/{self._options['filter']}"))
        if not chosen & set(demos):
            raise BadDataError(f"config.options.filter={self._options['filter']!r}: {content.path} has no such mask, "
                               f"or none of its demonstrations; it has {', '.join(content.names('mask')) or 'none'}")
        return [demo for demo in demos if demo in chosen]

    def _length(self, content: Hdf5File, demo: str) -> int:
        """Steps of a demonstration, in which all that is taken agrees."""
        paths = {_path(content, demo, name) for selection in self._numbers.values() for name, _, _ in selection.parts}
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
        names = {name for selection in self._numbers.values() for name, _, _ in selection.parts}
        columns = {name: self._column(content, demo, name) for name in names}
        values = {key: selection.values(columns) for key, selection in self._numbers.items()}
        reward = content.dataset(f"{demo}/rewards")
        rewards = None if reward is None or reward.shape != (count,) else content.rows(f"{demo}/rewards", reward)
        images = {name: self._images(content, f"{demo}/obs/{camera}", self.schema.cameras[name], count)
                  for name, camera in self._cameras.items()}
        stride = self._resampling.stride
        for first in range(0, count, stride):
            group = range(first, min(first + stride, count))
            actions = [{key: values[key][step] for key in self.schema.actions} for step in group]
            yield SourceStep({name: next(shown) for name, shown in images.items()}, self._resampling.joined(actions),
                             {key: values[key][first] for key in self.schema.observations},
                             reward=0.0 if rewards is None else float(rewards[group.start:group.stop].sum()))

    def _column(self, content: Hdf5File, demo: str, name: str) -> np.ndarray:
        """(steps, numbers) of a data set."""
        path = _path(content, demo, name)
        dataset = content.dataset(path)
        assert dataset is not None, "_length has looked at it"
        array = content.rows(path, dataset)
        array = array[:, None] if array.ndim == 1 else array
        needed = max(stop for selection in self._numbers.values() for part, _, stop in selection.parts if part == name)
        if array.ndim != 2 or array.shape[1] < needed:
            raise BadDataError(f"{content.path}, {path}: found shape {list(dataset.shape)}, expected [{len(array)}, "
                               f"{needed}] as in the first demonstration")
        return array

    def _images(self, content: Hdf5File, path: str, size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
        """The image of every step that is kept, upright."""
        dataset = content.dataset(path)
        assert dataset is not None, "_length has looked at it"
        if dataset.shape != (count, *size, 3) or dataset.dtype != np.uint8:
            raise BadDataError(f"{content.path}, {path}: found {dataset.dtype}{list(dataset.shape)}, expected "
                               f"uint8{[count, *size, 3]} as in the first demonstration")
        stride, turn = self._resampling.stride, _TURNS[self._options["turn"]]
        block = max(1, _BLOCK_BYTES // (size[0] * size[1] * 3)) * stride
        for first in range(0, count, block):
            pixels = content.rows(path, dataset, slice(first, min(first + block, count), stride))
            yield from np.ascontiguousarray(pixels[turn])


def open_source(path: Path, config: PrepareConfig) -> RobomimicSource:
    """The demonstrations of a file, or of all files in a folder.

    Raises:
        ValueError: there are none, or the config chooses what is not there.
        BadDataError: a file is damaged, or has data elsewhere.
    """
    options = checked_options(config, _OPTIONS)
    root = path if path.is_dir() else path.parent
    files = tuple(sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)) if path.is_dir() else (path,)
    if not files:
        raise ValueError(f"{path}: found no file *{' or *'.join(_SUFFIXES)}, expected those of robomimic or LIBERO")
    Folder(root, config.allow_root).check_links(files if path.is_dir() else (), str(path))
    first = _first_layout(files)
    if options["turn"] not in ("auto", *_TURNS):
        raise ValueError(f"config.options.turn={options['turn']!r}: expected one of auto, {', '.join(_TURNS)}")
    options["turn"] = ("half" if first.libero else "none") if options["turn"] == "auto" else options["turn"]
    if not first.cameras:
        raise ValueError(f"{first.where}: obs holds no images, uint8 (N, H, W, 3), but {', '.join(first.numbers)}; "
                         "robomimic's dataset_states_to_obs.py writes them, with --camera_names agentview")
    default = next((name for name in _DEFAULT_CAMERAS if name in first.cameras), "")
    cameras = chosen_cameras(config, first.cameras, default, first.unusable)
    written, action = _action_spec(config, first)
    written_state, state = _state_spec(config, first, keep=options["state"])
    numbers = {key: select(key, config.fields.get(key, "actions" if key == "action" else key), first.numbers,
                           first.unusable, shape) for key, (shape, _) in action.fields.items()}
    observed = _state_numbers(config, first, state, keep=options["state"])
    check_fields(config, numbers | observed)
    resampling = Resampling(config, stride_of(config, first.rate_hz), first.rate_hz, action, absolute=action.absolute)
    turned = () if options["turn"] == "none" else (
        f"images: {'flipped upside down' if options['turn'] == 'flip' else 'turned by half a turn'}"
        f"{', as LIBERO stores them upside down' if first.libero else ''} (config.options.turn={options['turn']})",)
    schema = Schema({name: first.cameras[camera] for name, camera in cameras.items()}, action.fields,
                    {key: state.fields[key] if state else (selection.shape, np.float32)
                     for key, selection in observed.items()}, notes=(*turned, *resampling.notes))
    given = options["instructions"] or config.instruction_text
    instructions = Instructions(root, options["instructions"], config) if given else None
    return RobomimicSource(schema, written, written_state, resampling.rate_hz, root, files, config, options, cameras,
                           {**numbers, **observed}, resampling, instructions)


def _first_layout(files: tuple[Path, ...]) -> Layout:
    """Of the first demonstration that can be read."""
    first_error: BadDataError | None = None
    for file in files:
        try:
            with open_hdf5(file) as content:
                return layout_of(content)
        except BadDataError as error:
            first_error = first_error or error
    assert first_error is not None, "there is a file"
    raise first_error


def _action_spec(config: PrepareConfig, first: Layout) -> tuple[dict[str, Any], ActionSpec]:
    """As the store keeps it, and closed."""
    declared = declared_spec(ActionSpec, config.action_spec)
    if declared:
        return dict(config.action_spec), declared
    other = config.fields.get("action", "actions")
    if not first.own_action or other != "actions":
        raise ValueError(f"{first.where}: what the numbers of {other!r} mean does not follow from the file "
                         f"({first.why_no_action or 'it is not `actions`'}); give config.action_spec, as made by "
                         "arms.arm_spec(NAME, names=(...), low=..., high=..., absolute=...)")
    return first.own_action, ActionSpec.from_dict(first.own_action)


def _state_spec(config: PrepareConfig, first: Layout, *, keep: bool) -> tuple[dict[str, Any], StateSpec | None]:
    """As the store keeps it, and closed; {} and None where the state is stored as it is, or not at all."""
    if config.state_spec:
        return dict(config.state_spec), declared_spec(StateSpec, config.state_spec)
    if keep and first.own_state and "state" not in config.fields:
        return first.own_state, StateSpec.from_dict(first.own_state)
    return {}, None


def _state_numbers(config: PrepareConfig, first: Layout, state: StateSpec | None, *,
                   keep: bool) -> dict[str, Selection]:
    """What each key of the state is made of."""
    there = next((text for text in _STATES if all(name in first.numbers for name in text.split(","))), "")
    if state:
        return {key: select(key, config.fields.get(key, there if key == "state" else key), first.numbers,
                            first.unusable, shape) for key, (shape, _) in state.fields.items()}
    text = config.fields.get("state", there if keep else "")
    return {"state": select("state", text, first.numbers, first.unusable)} if text else {}


def _path(content: Hdf5File, demo: str, name: str) -> str:
    """Where a column lies: in obs, or beside it."""
    return f"{demo}/obs/{name}" if content.dataset(f"{demo}/obs/{name}") is not None else f"{demo}/{name}"
