"""CALVIN (Mees et al. 2022, arXiv 2112.03227), its splits ABCD and D: the part that is annotated with language.

    task_ABCD_D/
      training/                              -> split "train"
        episode_0000000.npz ...              one time step: rel_actions (7), actions (7), robot_obs (15),
                                             rgb_static (200, 200, 3), rgb_gripper (84, 84, 3), ...
        ep_start_end_ids.npy                 (n, 2): first and last step of each stretch of play
        statistics.yaml                      mean and std of robot_obs
        lang_annotations/auto_lang_ann.npy   pickled: info.indx [(start, end)], language.ann, language.task
      validation/                            -> split "test"

An annotation is an episode: the steps of [start, end), mostly 64. Those that share steps make one recording
(annotations.py), so that a step is seen in one recording only, and a damaged one costs few others.

Actions are rel_actions in the units of `actions.CALVIN`, states robot_obs by `actions.calvin_state`. The instruction is
`ann`; config.instruction="task" takes the name of the task. Options:

    language="lang_annotations"   folder of auto_lang_ann.npy: the data come with others, which differ in embeddings
    state=True                    False: no state, so that no statistics.yaml is needed
    skip_unannotated=False        True: a split without language annotations is left out
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from agent_jax.actions import CALVIN, ActionSpec, StateSpec, calvin_state
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.calvin.annotations import PLAYS, SKIP, Annotations, is_annotated, read_annotations
from agent_jax.data.prepare.sources.calvin.npy_file import NpzFile, open_npz
from agent_jax.data.prepare.sources.choices import checked_options, chosen_cameras, columns, declared_spec
from agent_jax.data.prepare.sources.resampling import Resampling, stride_of
from agent_jax.data.prepare.sources.source import BadDataError, Recording, Schema, SourceEpisode, SourceStep

_SPLITS = {"training": "train", "validation": "test"}
_OPTIONS = {"language": "lang_annotations", "state": True, SKIP: False}
_CAMERAS = ("rgb_static", "rgb_gripper")
_ACTIONS = "rel_actions"
_RATE_HZ = 30.0
_BYTES_A_PIXEL = 0.375  # of a JPEG of rgb_static, about
_LOOKED_AT = 100  # first steps of annotations, of which one at least must be readable
_KEPT_FRAMES = 128  # of 141 kB: annotations that overlap share up to 63


@dataclasses.dataclass(frozen=True)
class CalvinSource:
    """An opened CALVIN folder."""

    schema: Schema
    action_spec: Mapping[str, Any]
    state_spec: Mapping[str, Any]
    rate_hz: float
    _path: Path
    _annotations: Mapping[str, Annotations]  # by folder
    _cameras: Mapping[str, str]
    _columns: Mapping[str, str]
    _resampling: Resampling

    def recordings(self) -> list[Recording]:
        """Groups of annotations that share steps, in the order of their steps."""
        pixels = sum(height * width for height, width in self.schema.cameras.values())
        found: list[Recording] = []
        for folder, annotated in self._annotations.items():
            for group in annotated.groups():
                bounds = annotated.bounds_N2[group]
                first, stop = int(bounds[:, 0].min()), int(bounds[:, 1].max())
                size = int((bounds[:, 1] - bounds[:, 0]).sum()) * pixels * _BYTES_A_PIXEL
                found.append(Recording(f"{folder}/{first:07d}-{stop:07d}/{group[0]}",
                                       str(self._frame_file(folder, first)), _SPLITS[folder], max(int(size), 1),
                                       {"folder": folder, "annotations": group}))
        return found

    def files(self, recording: Recording) -> Iterator[Path]:
        """Its annotations, statistics.yaml and the steps."""
        folder = recording.detail["folder"]
        annotated = self._annotations[folder]
        yield from (annotated.file, self._path / folder / PLAYS, *_statistics_files(self._path))
        for number in recording.detail["annotations"]:
            if annotated.in_play(number):
                yield from (self._frame_file(folder, index) for index in range(*annotated.bounds_N2[number].tolist()))

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """An episode for each annotation of the group.

        Raises:
            BadDataError: a step's file is missing or damaged, or an annotation lies in no stretch of play.
        """
        folder = recording.detail["folder"]
        annotated, frames = self._annotations[folder], _Frames(self, folder)
        for number in recording.detail["annotations"]:
            start, stop, text = annotated.checked(number)
            yield SourceEpisode(f"{folder}/{number:05d}", text,
                                self._steps(frames, range(start, stop), annotated.place(number)))

    def _steps(self, frames: _Frames, indices: range, where: str) -> Iterator[SourceStep]:
        """The steps that are kept, with the actions of those between."""
        for first in indices[:: self._resampling.stride]:
            group = [frames.step(index, where) for index in range(first, min(first + self._resampling.stride,
                                                                             indices.stop))]
            yield dataclasses.replace(group[0], actions=self._resampling.joined([step.actions for step in group]))

    def _frame_file(self, folder: str, index: int) -> Path:
        return self._path / folder / f"episode_{index:07d}.npz"


class _Frames:
    """The steps of a folder; the latest are kept, for annotations overlap."""

    def __init__(self, source: CalvinSource, folder: str):
        self._source, self._folder = source, folder
        self._kept: OrderedDict[int, SourceStep] = OrderedDict()

    def step(self, index: int, where: str) -> SourceStep:
        """The step of that number, wanted by `where`."""
        if index not in self._kept:
            self._kept[index] = self._read(index, where)
            if len(self._kept) > _KEPT_FRAMES:
                self._kept.popitem(last=False)
        return self._kept[index]

    def _read(self, index: int, where: str) -> SourceStep:
        source = self._source
        file = source._frame_file(self._folder, index)
        if not file.is_file():
            raise BadDataError(f"{file}: not found, but {where} needs it; copy the data anew")
        shapes = {**source.schema.actions, **source.schema.observations}
        with open_npz(file) as content:
            numbers = {key: _array(content, column, file, tuple(shapes[key][0]))
                       for key, column in source._columns.items()}
            images = {name: _array(content, camera, file, (*source.schema.cameras[name], 3), image=True)
                      for name, camera in source._cameras.items()}
        return SourceStep(images, {key: numbers[key] for key in source.schema.actions},
                          {key: numbers[key] for key in source.schema.observations})


def open_source(path: Path, config: PrepareConfig) -> CalvinSource:
    """The CALVIN data in a folder that holds `training`, `validation` or both.

    Raises:
        ValueError: it is no such folder, a file of its annotations is damaged, or the config chooses what is not there.
        FileNotFoundError: an annotation file, statistics.yaml or the first step is missing.
    """
    options = checked_options(config, _OPTIONS)
    if config.instruction_text:
        raise ValueError(f"config.instruction_text={config.instruction_text!r}: CALVIN's episodes are its annotations, "
                         "which have texts; leave it out")
    folders = [folder for folder in _SPLITS if (path / folder).is_dir()]
    if not folders:
        found = sorted(item.name for item in path.iterdir())[:5] if path.is_dir() else "no folder"
        raise ValueError(f"{path}: found {found}, expected a folder of CALVIN with training/ or validation/ in it, as "
                         "task_D_D")
    left_out = [folder for folder in folders if options[SKIP] and not is_annotated(path / folder)]
    folders = [folder for folder in folders if folder not in left_out] or folders
    notes = [f"{folder}: left out, for it has no language annotations (config.options.{SKIP})" for folder in left_out]
    annotated = {folder: read_annotations(path / folder, options["language"], config.instruction or "ann")
                 for folder in folders}
    action = declared_spec(ActionSpec, config.action_spec) or CALVIN
    if not config.action_spec and config.fields.get("action", _ACTIONS) != _ACTIONS:
        raise ValueError(f"config.fields.action={config.fields['action']!r}: the spec of CALVIN is that of {_ACTIONS}; "
                         "give config.action_spec as well, with the bounds and units of these")
    state = _state_spec(path, config, options)
    resampling = Resampling(config, stride_of(config, _RATE_HZ), _RATE_HZ, action, absolute=action.absolute)
    shapes = {**action.fields, **(state.fields if state else {})}
    cameras = chosen_cameras(config, _CAMERAS, _CAMERAS[0])
    first = annotated[folders[0]]
    starts = [path / folders[0] / f"episode_{index:07d}.npz" for index in first.bounds_N2[:_LOOKED_AT, 0].tolist()]
    own_state = state.to_dict() if state else {}
    written = dict(config.action_spec) or action.to_dict(), dict(config.state_spec) or own_state
    schema = Schema(_sizes(starts, cameras), action.fields, state.fields if state else {},
                    notes=(*notes, *resampling.notes))
    return CalvinSource(schema, *written, resampling.rate_hz, path, annotated, cameras,
                        columns(config, shapes, {"action": _ACTIONS}), resampling)


def _state_spec(path: Path, config: PrepareConfig, options: Mapping[str, Any]) -> StateSpec | None:
    """robot_obs over mean +- 3 std of the training data, which validation uses as well."""
    if config.state_spec:
        return declared_spec(StateSpec, config.state_spec)
    if not options["state"]:
        return None
    files = _statistics_files(path)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{files[0]}: not found; it holds the bounds of the state. Give config.state_spec, or "
                                "set config.options.state=False to go without a state")
    try:
        transforms = yaml.safe_load(file.read_text(encoding="utf-8"))["robot_obs"]
        # Hydra's: a list of classes with their arguments, of which one normalises.
        normalize = next(item for item in transforms if str(item.get("_target_", "")).endswith(".NormalizeVector"))
        return calvin_state(normalize["mean"], normalize["std"])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise BadDataError(f"{file}: found no mean and std of robot_obs ({error!r}); expected a list with an entry "
                           "whose _target_ ends in NormalizeVector") from error


def _statistics_files(path: Path) -> list[Path]:
    return [path / folder / "statistics.yaml" for folder in _SPLITS]


def _sizes(files: Sequence[Path], cameras: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Height and width of each camera's images, from the first of these steps that can be read.

    Raises:
        FileNotFoundError: none is there.
        BadDataError: none of those that are there can be read.
    """
    first_error: BadDataError | None = None
    for file in files:
        if not file.is_file():
            continue
        try:
            with open_npz(file) as content:
                shapes = {name: _array(content, camera, file, (-1, -1, 3), image=True).shape
                          for name, camera in cameras.items()}
            return {name: (shape[0], shape[1]) for name, shape in shapes.items()}
        except BadDataError as error:  # `read` of its recording says so again, or leaves it out
            first_error = first_error or error
    if first_error:
        raise first_error
    raise FileNotFoundError(f"{files[0]}: not found; expected the first annotated step. Steps are named by seven "
                            "digits")


def _array(content: NpzFile, key: str, file: Path, shape: tuple[int, ...], *, image: bool = False) -> np.ndarray:
    """An array of a step's file, of the shape it must have; -1: any size."""
    member = content.member(key)
    found, dtype = member.header.shape, member.header.dtype
    fits = len(found) == len(shape) and all(e in (-1, f) for e, f in zip(shape, found, strict=True))
    if not fits or (image and dtype != np.uint8):
        raise BadDataError(f"{file}: {key!r} is {dtype}{list(found)}, expected "
                           f"{'uint8' if image else 'numbers'} of shape {list(shape)}")
    array = content.read(member)
    if not image and not (array.dtype.kind in "biuf" and np.isfinite(array).all()):
        raise BadDataError(f"{file}: {key!r} is {array.tolist()}, expected finite numbers")
    return array
