"""CALVIN (Mees et al. 2022, arXiv 2112.03227), splits ABCD and D: the part with language annotations.

    task_ABCD_D/
      training/                              -> split "train"
        episode_0000000.npz ...              one time step: rel_actions (7), actions (7), robot_obs (15),
                                             rgb_static (200, 200, 3), rgb_gripper (84, 84, 3), ...
        ep_start_end_ids.npy                 (n, 2): first and last step of each stretch of play
        statistics.yaml                      mean and std of robot_obs
        lang_annotations/auto_lang_ann.npy   pickled: info.indx [(start, end)], language.ann, language.task
      validation/                            -> split "test"

An annotation is an episode: the steps [start, end), usually 64. Annotations that share steps form one recording
(annotations.py), so that a step occurs in one recording only, and a damaged step affects few others.

Actions are rel_actions in the units of `actions.CALVIN`, states robot_obs by `actions.calvin_state`. The instruction is
`ann`; config.instruction="task" takes the name of the task. Options:

    language="lang_annotations"   folder of auto_lang_ann.npy: the data come with others, which differ in embeddings
    state=True                    False: no state, so that no statistics.yaml is needed
    skip_unannotated=False        True: a split without language annotations is left out
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import yaml

from agent_jax.actions import CALVIN, ActionSpec, StateSpec, calvin_state
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.calvin.annotations import PLAYS, read_annotations
from agent_jax.data.prepare.sources.choices import check_fields, chosen_cameras, declared_spec, typed_options
from agent_jax.data.prepare.sources.npy_file import NpzFile, open_npz
from agent_jax.data.prepare.sources.resampling import Resampling, stride_of
from agent_jax.data.prepare.sources.source import Recording, Schema, Source, SourceEpisode, SourceStep, first_readable

_SPLITS = {"training": "train", "validation": "test"}
_CAMERAS = ("rgb_static", "rgb_gripper")
_ACTIONS = "rel_actions"
_RATE_HZ = 30.0
_BYTES_PER_PIXEL = 0.375  # of a JPEG of rgb_static, approximately
_MAX_FIRST_STEPS = 100  # first steps of annotations that are tried to learn the size of images
_CACHED_STEPS = 128  # of 141 kB: overlapping annotations share up to 63


@dataclasses.dataclass(frozen=True)
class CalvinOptions:
    """`config.options` of this source."""

    language: str = "lang_annotations"
    state: bool = True
    skip_unannotated: bool = False


class CalvinSource(Source):
    """A CALVIN folder that holds `training`, `validation` or both."""

    def __init__(self, path: Path, config: PrepareConfig):
        options = typed_options(CalvinOptions, config)
        if config.instruction_text:
            raise ValueError(f"config.instruction_text={config.instruction_text!r}: CALVIN's episodes are its "
                             "annotations, which have texts; leave it out")
        folders = [folder for folder in _SPLITS if (path / folder).is_dir()]
        if not folders:
            found = sorted(item.name for item in path.iterdir())[:5] if path.is_dir() else "no folder"
            raise ValueError(f"{path}: found {found}, expected a folder of CALVIN with training/ or validation/ in it, "
                             "as task_D_D")
        skipped = [folder for folder in folders
                   if options.skip_unannotated and not any((path / folder).glob("*/auto_lang_ann.npy"))]
        folders = [folder for folder in folders if folder not in skipped] or folders
        notes = [f"{folder}: left out, for it has no language annotations (config.options.skip_unannotated)"
                 for folder in skipped]
        self._path = path
        self._annotations = {folder: read_annotations(path / folder, options.language, config.instruction or "ann")
                             for folder in folders}
        action = declared_spec(ActionSpec, config.action_spec) or CALVIN
        if not config.action_spec and config.fields.get("action", _ACTIONS) != _ACTIONS:
            raise ValueError(f"config.fields.action={config.fields['action']!r}: the spec of CALVIN is that of "
                             f"{_ACTIONS}; give config.action_spec as well, with the bounds and units of these")
        state = declared_spec(StateSpec, config.state_spec) or (_default_state(path) if options.state else None)
        self._shapes = {**action.fields, **(state.fields if state else {})}
        check_fields(config, self._shapes)
        self._columns = {key: config.fields.get(key, _ACTIONS if key == "action" else key) for key in self._shapes}
        self._resampling = Resampling(config, stride_of(config, _RATE_HZ), _RATE_HZ, action, absolute=action.absolute)
        self._cameras = chosen_cameras(config, _CAMERAS, _CAMERAS[0])
        starts = self._annotations[folders[0]].bounds_N2[:_MAX_FIRST_STEPS, 0].tolist()
        self.schema = Schema(_image_sizes([self._step_file(folders[0], index) for index in starts], self._cameras),
                             action.fields, state.fields if state else {}, notes=(*notes, *self._resampling.notes))
        self.action_spec = dict(config.action_spec) or action.to_dict()
        self.state_spec = dict(config.state_spec) or (state.to_dict() if state else {})
        self.rate_hz = self._resampling.rate_hz

    def recordings(self) -> list[Recording]:
        """Groups of annotations that share steps, in the order of their steps."""
        pixels = sum(height * width for height, width in self.schema.cameras.values())
        found: list[Recording] = []
        for folder, annotated in self._annotations.items():
            for group in annotated.groups():
                bounds = annotated.bounds_N2[group]
                first, stop = int(bounds[:, 0].min()), int(bounds[:, 1].max())
                size = int((bounds[:, 1] - bounds[:, 0]).sum()) * pixels * _BYTES_PER_PIXEL
                found.append(Recording(f"{folder}/{first:07d}-{stop:07d}/{group[0]}",
                                       str(self._step_file(folder, first)), _SPLITS[folder], max(int(size), 1),
                                       {"folder": folder, "annotations": group}))
        return found

    def files(self, recording: Recording) -> Iterator[Path]:
        """Its annotations, statistics.yaml and the steps."""
        folder = recording.detail["folder"]
        annotated = self._annotations[folder]
        yield from (annotated.file, self._path / folder / PLAYS, *_statistics_files(self._path))
        for number in recording.detail["annotations"]:
            if annotated.in_play(number):
                yield from (self._step_file(folder, index) for index in range(*annotated.bounds_N2[number].tolist()))

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """An episode for each annotation of the group."""
        folder = recording.detail["folder"]
        annotated = self._annotations[folder]
        read_step = functools.lru_cache(_CACHED_STEPS)(self._read_step)
        for number in recording.detail["annotations"]:
            start, stop, text = annotated.checked(number)
            files = [self._step_file(folder, index) for index in range(start, stop)]
            yield SourceEpisode(f"{folder}/{number:05d}", text,
                                self._steps(read_step, files, annotated.place(number)))

    def _steps(self, read_step: Callable[[Path], SourceStep], files: list[Path], where: str) -> Iterator[SourceStep]:
        """The steps that are kept, with the actions of those between."""
        stride = self._resampling.stride
        for first in range(0, len(files), stride):
            group = files[first : first + stride]
            for file in group:
                if not file.is_file():
                    raise BadDataError(f"{file}: not found, but {where} needs it; copy the data again")
            steps = [read_step(file) for file in group]
            yield dataclasses.replace(steps[0], actions=self._resampling.joined([step.actions for step in steps]))

    def _read_step(self, file: Path) -> SourceStep:
        with open_npz(file) as content:
            numbers = {key: _read_array(content, column, file, tuple(self._shapes[key][0]))
                       for key, column in self._columns.items()}
            images = {name: _read_array(content, camera, file, (*self.schema.cameras[name], 3), image=True)
                      for name, camera in self._cameras.items()}
        return SourceStep(images, {key: numbers[key] for key in self.schema.actions},
                          {key: numbers[key] for key in self.schema.observations})

    def _step_file(self, folder: str, index: int) -> Path:
        return self._path / folder / f"episode_{index:07d}.npz"


def _default_state(path: Path) -> StateSpec:
    """robot_obs over mean +- 3 std of the training data, which validation uses as well."""
    files = _statistics_files(path)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{files[0]}: not found; it holds the bounds of the state. Give config.state_spec, or "
                                "set config.options.state=False to go without a state")
    try:
        transforms = yaml.safe_load(file.read_text(encoding="utf-8"))["robot_obs"]
        # Hydra's list of classes with their arguments; one of them normalises.
        normalize = next(item for item in transforms if str(item.get("_target_", "")).endswith(".NormalizeVector"))
        return calvin_state(normalize["mean"], normalize["std"])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise BadDataError(f"{file}: found no mean and std of robot_obs ({error!r}); expected a list with an entry "
                           "whose _target_ ends in NormalizeVector") from error


def _statistics_files(path: Path) -> list[Path]:
    return [path / folder / "statistics.yaml" for folder in _SPLITS]


def _image_sizes(files: list[Path], cameras: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Height and width of each camera's images, from the first of these steps that can be read.

    Raises:
        FileNotFoundError: no file exists.
        BadDataError: none of the existing files can be read.
    """
    existing = [file for file in files if file.is_file()]
    if not existing:
        raise FileNotFoundError(f"{files[0]}: not found; expected the first annotated step. Step files have numbers of "
                                "seven digits")

    def sizes(file: Path) -> dict[str, tuple[int, int]]:
        with open_npz(file) as content:
            shapes = {name: _read_array(content, camera, file, (-1, -1, 3), image=True).shape
                      for name, camera in cameras.items()}
        return {name: (shape[0], shape[1]) for name, shape in shapes.items()}

    return first_readable(existing, sizes, "")


def _read_array(content: NpzFile, key: str, file: Path, shape: tuple[int, ...], *, image: bool = False) -> np.ndarray:
    """An array of a step's file, checked against the expected shape; -1: any size."""
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
