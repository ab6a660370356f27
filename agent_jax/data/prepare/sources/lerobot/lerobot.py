"""LeRobot data sets of version 2.0, 2.1 and 3.x (github.com/huggingface/lerobot): parquet, mp4 and `meta`.

    meta     features, episodes, tasks, paths       meta.py
    data     parquet: one row per step              rows.py
    videos   mp4, or images within the parquet      frames.py: which frame belongs to which row

Defaults: the action is the feature `action`; the state, if present, `observation.state`; the camera is the only one;
the instruction is the row's task. Without `config.action_spec` the spec of the actions is made from the data's names
and statistics (default_spec.py). Options: pairing (frames.py).

    config.cameras.rgb=observation.images.top
    config.fields.action=action[0:6],gripper    part of a feature, and several joined
    config.instruction=language_instruction     a feature of texts, or of task indices (instructions.py)
    config.instruction_text="fold the towel"    one instruction for all
    config.rate_hz=10                           of 30: every third step, with the actions of all (sources/resampling.py)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType

import numpy as np
import pyarrow as pa

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.paths import Folder
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import check_fields, chosen_cameras, declared_spec, typed_options
from agent_jax.data.prepare.sources.lerobot.default_spec import DefaultSpec, default_action_spec
from agent_jax.data.prepare.sources.lerobot.frames import EpisodeVideo, Pairing, row_times
from agent_jax.data.prepare.sources.lerobot.info import Features
from agent_jax.data.prepare.sources.lerobot.instructions import instruction_column
from agent_jax.data.prepare.sources.lerobot.meta import EpisodeEntry, read_info, read_meta
from agent_jax.data.prepare.sources.lerobot.rows import EpisodeTables
from agent_jax.data.prepare.sources.parquet import column_numbers
from agent_jax.data.prepare.sources.resampling import Resampling, stride_of
from agent_jax.data.prepare.sources.selection import Selection, select, selected_columns, selected_shapes
from agent_jax.data.prepare.sources.source import Recording, Schema, Source, SourceEpisode, SourceStep

_DEFAULTS = {"action": "action", "state": "observation.state"}
_REWARD, _DONE = "next.reward", "next.done"


@dataclasses.dataclass(frozen=True)
class LeRobotOptions:
    """`config.options` of this source."""

    pairing: Pairing = "auto"


class LeRobotSource(Source):
    """A LeRobot data set: a folder that holds `meta` and `data`."""

    def __init__(self, path: Path, config: PrepareConfig):
        self._path, self._config = path, config
        self._pairing: Pairing = typed_options(LeRobotOptions, config).pairing
        info = read_info(path)
        features = info.features()
        self._cameras = chosen_cameras(config, features.cameras, unusable=features.unusable)
        self._meta = read_meta(path, info, features, self._cameras.values())
        action = declared_spec(ActionSpec, config.action_spec)
        state = declared_spec(StateSpec, config.state_spec)
        self._instruction = instruction_column(path, config, features)
        self._actions = _selections(config, features, action, "action")
        self._observations = _selections(config, features, state, "state")
        check_fields(config, self._actions | self._observations)
        stride = stride_of(config, self._meta.rate_hz)
        default = DefaultSpec({}, None, ()) if action else default_action_spec(
            path, info, features, self._actions["action"], rate_hz=self._meta.rate_hz / stride,
            summed=stride > 1 and config.resample_actions == "sum")
        self._resampling = Resampling(config, stride, self._meta.rate_hz,
                                      action or declared_spec(ActionSpec, default.content),
                                      absolute=action.absolute if action else default.absolute)
        self.schema = Schema({name: (features.cameras[camera].height, features.cameras[camera].width)
                              for name, camera in self._cameras.items()},
                             selected_shapes(self._actions, action), selected_shapes(self._observations, state),
                             defaults=("action_spec",) if default.content else (),
                             notes=(*self._instruction.notes, *default.notes, *self._resampling.notes))
        self.action_spec = dict(config.action_spec) or default.content
        self.state_spec = dict(config.state_spec)
        self.rate_hz = self._resampling.rate_hz
        columns = {"frame_index", "timestamp", *selected_columns(self._actions | self._observations),
                   *(camera for camera in self._cameras.values() if features.cameras[camera].kind == "image"),
                   *(name for name in (_REWARD, _DONE) if features.numbers.get(name) == (1,)), self._instruction.name}
        self._tables = EpisodeTables(sorted(columns - {""}))

    def recordings(self) -> list[Recording]:
        """The episodes, in their order."""
        return [Recording(f"episode_{entry.index:06d}", str(self._largest_file(entry)), self._split(entry.index),
                          detail=place) for place, entry in enumerate(self._meta.episodes)]

    def files(self, recording: Recording) -> Iterator[Path]:
        """The episode's table and videos, the metadata, and image files in the folder where LeRobot puts them."""
        entry = self._meta.episodes[recording.detail]
        yield entry.table
        yield from (entry.videos[camera].file for camera in self._cameras.values() if camera in entry.videos)
        yield from (self._path / "images").glob(f"*/episode[_-]{entry.index:06d}/*")
        yield from self._meta_files

    @functools.cached_property
    def _folder(self) -> Folder:
        return Folder(self._path, self._config.allow_root)

    @functools.cached_property
    def _meta_files(self) -> list[Path]:
        return [file for file in (self._path / "meta").rglob("*") if file.is_file()]

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """The episode, cut where the instruction changes."""
        entry = self._meta.episodes[recording.detail]
        where = f"{entry.table}, episode {entry.index}"
        table = self._tables.rows(entry)
        videos = {camera: EpisodeVideo(entry, camera, self._meta)
                  for camera in self._cameras.values() if camera in entry.videos}
        times = row_times(table, self._meta, where, self._pairing, videos=bool(videos))
        notes = {*times.notes, *(note for video in videos.values() for note in video.notes(len(table)))}
        taken = range(0, len(table), self._resampling.stride)
        texts = self._texts(table, where)[:: taken.step]
        done = _DONE in table.column_names and bool(column_numbers(table, _DONE, 1, where)[-1, 0])
        images = {name: videos[camera].images(times, taken) if camera in videos else
                  self._stored_images(camera, table, taken, where) for name, camera in self._cameras.items()}
        steps = self._steps(table, images, where)
        start = 0
        for text, run in itertools.groupby(texts):
            length = len(list(run))
            ends = start + length == len(texts)
            yield SourceEpisode(recording.name, text, itertools.islice(steps, length), start, ends, ends and done,
                                notes=tuple(sorted(notes)))
            start += length

    def _largest_file(self, entry: EpisodeEntry) -> Path:
        videos = [entry.videos[camera].file for camera in self._cameras.values() if camera in entry.videos]
        return max(videos, key=lambda file: file.stat().st_size if file.is_file() else 0, default=entry.table)

    def _split(self, index: int) -> str:
        """The data's own split, if they have more than one."""
        splits = self._meta.splits
        name = next((name for name, (first, stop) in splits.items() if first <= index < stop), "")
        return "" if len(splits) < 2 or not name else "train" if name == "train" else "test"

    def _texts(self, table: pa.Table, where: str) -> list[str]:
        """The instruction of each row."""
        if self._config.instruction_text:
            return [self._config.instruction_text] * len(table)
        return self._instruction.texts(table, self._meta.tasks, where)

    def _steps(self, table: pa.Table, images: Mapping[str, Iterator[bytes | np.ndarray]],
               where: str) -> Iterator[SourceStep]:
        columns = {name: column_numbers(table, name, self._meta.features.numbers[name][0], where)
                   for name in selected_columns(self._actions | self._observations)}
        rewards = column_numbers(table, _REWARD, 1, where)[:, 0] if _REWARD in table.column_names else None
        yield from self._resampling.steps(
            len(table), images, {key: selection.values(columns) for key, selection in self._actions.items()},
            {key: selection.values(columns) for key, selection in self._observations.items()}, rewards)

    def _stored_images(self, camera: str, table: pa.Table, taken: range, where: str) -> Iterator[bytes]:
        """A camera's images stored in the table, for each row that is taken."""
        return (self._stored_image(table[camera][row], f"{where}, row {row}, {camera!r}") for row in taken)

    def _stored_image(self, value: pa.Scalar, where: str) -> bytes:
        """The encoded image of a row: its bytes, or those of the file that it names."""
        try:
            content = value.as_py()
        except UnicodeDecodeError as error:
            raise BadDataError(f"{where}: holds a path that is not UTF-8 ({error})") from error
        if not isinstance(content, dict) or not isinstance(content.get("bytes"), (bytes, NoneType)):
            raise BadDataError(f"{where}: found {type(content).__name__}, expected an image: an object of `bytes` and "
                               "`path`")
        if content.get("bytes"):
            return content["bytes"]
        file = self._folder.file(str(content.get("path") or ""), where)
        if not file.is_file():
            raise BadDataError(f"{where}: holds no image, and names the file {content.get('path')!r}, expected the "
                               "bytes of an image or a file within the data set")
        return file.read_bytes()


def _selections(config: PrepareConfig, features: Features, spec: ActionSpec | StateSpec | None,
                default: str) -> dict[str, Selection]:
    """The selection of each key of the spec; without a spec, of the key `default`."""
    if spec:
        return {key: select(key, config.fields.get(key, key if key in features.numbers else _DEFAULTS.get(key, key)),
                            features.numbers, features.unusable, shape)
                for key, (shape, _) in spec.fields.items()}
    text = config.fields.get(default, _DEFAULTS[default])
    if default == "state" and default not in config.fields and len(features.numbers.get(text, ())) != 1:
        return {}
    return {default: select(default, text, features.numbers, features.unusable)}
