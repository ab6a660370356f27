"""RLDS data sets of TFDS, as TFRecord or array_record, read without TensorFlow: Open-X, Language-Table and others.

    1.0.0/
      NAME-train.tfrecord-00000-of-00002   one serialized tf.train.Example per episode
      NAME-val.tfrecord-00000-of-00001
      features.json                        the features of a record
      dataset_info.json                    splits, and episodes of each file

A recording is an episode, or all records with the same `recording_id`. Data sets in array_record need not be prepared:
training reads them as they are. If `train` is the only split, config.validation sets the share of test recordings. An
episode is divided where its instruction changes. A record's `answer` (text) and `label` (whole number) are kept.

`config.cameras`, `config.fields` and `config.instruction` name features by path (`steps/observation/image_0`) or by
the part after `steps/`, `steps/observation/` or `steps/action/`. A field may join several, as
`config.fields.action=world_vector,rotation_delta,open_gripper`. The format stores no rate; `config.rate_hz` sets it.
Of several instructions, `config.instruction=a,b`, each step takes the first that is not empty.

Options:
    last_action: "keep" (default), or "drop": weight 0 for the last action of an episode, which RLDS leaves undefined.
        For data whose writer stored no action there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.images import prepare_image
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import declared_spec, typed_options
from agent_jax.data.prepare.sources.rlds.features import FeatureNames
from agent_jax.data.prepare.sources.rlds.tfrecord import read_record, record_offsets
from agent_jax.data.prepare.sources.source import Recording, Schema, Source, SourceEpisode, SourceStep, first_readable
from agent_jax.data.store.episode import Episode
from agent_jax.data.store.schema import Field, features_fields, length_field
from agent_jax.data.store.store import METADATA_FILE, read_metadata
from agent_jax.data.store.tfds_folder import read_tfds_folder

_TEST_NAMES = ("test", "val", "valid", "validation", "eval")  # the first that the data have becomes "test"


@dataclasses.dataclass(frozen=True)
class RldsOptions:
    """`config.options` of this source."""

    last_action: Literal["keep", "drop"] = "keep"


class RldsSource(Source):
    """The RLDS data set in a directory, or in the newest version below it."""

    def __init__(self, path: Path, config: PrepareConfig):
        self._drop_last = typed_options(RldsOptions, config).last_action == "drop"
        directory = version_directory(path)
        self._folder = read_tfds_folder(directory, config.allow_root)
        self._directory, self._fields = directory, features_fields(self._folder.features)
        self._format = self._folder.file_format
        if self._format not in ("tfrecord", "array_record"):
            raise ValueError(f"{directory}: file format {self._format!r}, expected tfrecord or array_record")
        self._length_field = length_field(self._fields, str(directory))
        metadata = read_metadata(directory)
        self.action_spec = config.action_spec or metadata.get("action_spec") or {}
        self.state_spec = config.state_spec or metadata.get("state_spec") or {}
        spec, state = declared_spec(ActionSpec, self.action_spec), declared_spec(StateSpec, self.state_spec)
        own_hz = float(metadata.get("rate_hz") or 0)
        if own_hz and config.rate_hz and abs(config.rate_hz / own_hz - 1) > 0.01:
            raise ValueError(f"config.rate_hz={config.rate_hz:g}: {directory / METADATA_FILE} says {own_hz:g} steps a "
                             "second, and this source takes all of them; leave it out, or prepare the original data at "
                             "that rate")
        self.rate_hz = config.rate_hz or own_hz or (spec.rate_hz if spec else 0.0)
        names = FeatureNames(str(directory), self._fields, config)
        self._instruction, self._text = names.instruction(), config.instruction_text
        self._cameras = names.cameras()
        label = self._fields.get("label")
        answers = _is_record_text("answer", self._fields)
        labels = bool(label and not label.per_step and label.shape == () and label.dtype.kind in "iu")
        self._actions, self._states = names.numbers(spec, state, required=not (answers or labels))
        sizes = {name: self._fields[path].shape[:2] for name, path in self._cameras.items()}
        self.schema = Schema({name: (size[0], size[1]) for name, size in sizes.items()},
                             {key: (shape, dtype) for key, (shape, dtype, _) in self._actions.items()},
                             {key: (shape, dtype) for key, (shape, dtype, _) in self._states.items()},
                             answers=answers, labels=labels)
        if any(-1 in size for size in sizes.values()) and not config.image_size:  # features.json leaves a size open
            self.schema = dataclasses.replace(self.schema, cameras={**self.schema.cameras, **self._open_sizes()})

    def recordings(self) -> list[Recording]:
        """All recordings by split and file; the unreadable rest of a file is a recording that raises the reason.

        Records are parsed only if they have the field `recording_id`.
        """
        splits = self._folder.splits
        test = next((name for name in _TEST_NAMES if name in splits), "")
        found: dict[tuple[str, str], Recording] = {}
        for split, info in splits.items():
            stored = ("test" if split == test else split) if len(splits) > 1 else ""
            for shard, (path, declared) in enumerate(zip(info.files, info.records, strict=True)):
                offsets, wrong = self._offsets(path) if path.is_file() else ([], info.missing(path))
                if not wrong and len(offsets) != declared:
                    wrong = f"holds {len(offsets)} records, but dataset_info.json says {declared}; copy it again"
                size = path.stat().st_size // len(offsets) if offsets else 0
                for number, offset in enumerate(offsets):
                    name = self._recording_id(path, number, offset) or f"{split}/{shard:05d}/{number}"
                    own = Recording(name, f"{path}, record {number}", stored, size, [(str(path), number, offset)])
                    first = found.setdefault((stored, name), own)
                    if first is not own:
                        found[stored, name] = dataclasses.replace(first, size=first.size + size)
                        first.detail.extend(own.detail)
                if wrong:
                    name = f"{split}/{shard:05d}/end"
                    found[stored, name] = Recording(name, str(path), stored, detail=wrong)
        return list(found.values())

    def files(self, recording: Recording) -> list[Path]:
        """The file of its records, and the files that describe their format."""
        records = [recording.where] if isinstance(recording.detail, str) else [path for path, *_ in recording.detail]
        about = [self._directory / name for name in ("features.json", "dataset_info.json", METADATA_FILE)]
        return [*about, *map(Path, records)]

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """The episode of each of its records, divided where the instruction changes."""
        if isinstance(recording.detail, str):
            raise BadDataError(f"{recording.where}: {recording.detail}")
        for path, number, offset in recording.detail:
            name = recording.name if len(recording.detail) == 1 else f"{recording.name}/{number}"
            yield from self._read_record(Path(path), number, offset, name)

    def _read_record(self, path: Path, number: int, offset: int, name: str) -> Iterator[SourceEpisode]:
        """The episode of a record; `name` is used if the record has none."""
        where = f"{path}, record {number}"
        try:
            episode = self._episode(path, number, offset)
            texts = [self._text] * episode.steps if self._text else episode.texts(self._instruction)
            steps = self._steps(episode)
        except (OSError, ValueError, IndexError, RuntimeError) as error:  # array_record raises the last two
            raise BadDataError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
        if not steps:
            raise BadDataError(f"{where}: the episode has no steps, expected at least one")
        flags = {name: bool(episode.values(f"steps/{name}", episode.steps - 1, episode.steps)[0])
                 for name in ("is_last", "is_terminal") if f"steps/{name}" in self._fields}
        first = int(episode.value("start")) if "start" in self._fields else 0
        name = _name_in(episode, "episode_id", self._fields) or name
        answer = bytes(episode.value("answer")).decode("utf-8", "replace") if self.schema.answers else ""
        label = int(episode.value("label")) if self.schema.labels else -1
        changes = [0, *(t for t in range(1, len(texts)) if texts[t] != texts[t - 1]), len(texts)]
        for begin, end in itertools.pairwise(changes):
            last = end == len(steps)
            yield SourceEpisode(name, texts[begin], steps[begin:end], first + begin,
                                ends=last and flags.get("is_last", True),
                                terminal=last and flags.get("is_terminal", False), answer=answer, label=label)

    def _steps(self, episode: Episode) -> list[SourceStep]:
        count = episode.steps
        images = {name: episode.values(path, 0, count) for name, path in self._cameras.items()}
        actions = {key: self._numbers(episode, paths, shape) for key, (shape, _, paths) in self._actions.items()}
        states = {key: self._numbers(episode, paths, shape) for key, (shape, _, paths) in self._states.items()}
        one = np.ones(count)
        weights = episode.values("steps/action_weight", 0, count) if "steps/action_weight" in self._fields else one
        rewards = episode.values("steps/reward", 0, count) if "steps/reward" in self._fields else 0 * one
        lengths = {path: len(values) for path, values in (*images.items(), *actions.items(), *states.items())}
        if set(lengths.values()) - {count}:
            raise ValueError(f"its fields differ in length: {lengths}, expected {count} steps in each")
        return [SourceStep(images={name: values[t] for name, values in images.items()},
                           actions={key: values[t] for key, values in actions.items()},
                           observations={key: values[t] for key, values in states.items()},
                           action_weight=0.0 if self._drop_last and t == count - 1 else float(weights[t]),
                           reward=float(rewards[t]))
                for t in range(count)]

    def _numbers(self, episode: Episode, paths: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        """A key's values at all steps: one field, or several joined."""
        parts = [np.asarray(episode.values(path, 0, episode.steps)) for path in paths]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).reshape(-1, *shape)

    def _episode(self, path: Path, number: int, offset: int) -> Episode:
        content = self._content(path, number, offset)
        return Episode(content, f"{path}, record {number}", self._fields, self._length_field)

    def _recording_id(self, path: Path, number: int, offset: int) -> str:
        """The recording_id of a record; "" if it has none, or cannot be read."""
        if "recording_id" not in self._fields:
            return ""
        try:
            return _name_in(self._episode(path, number, offset), "recording_id", self._fields)
        except (ValueError, IndexError, RuntimeError):
            return ""

    def _offsets(self, path: Path) -> tuple[list[int], str]:
        if self._format == "tfrecord":
            return record_offsets(path)
        try:
            reader = ArrayRecordReader(str(path))
            count = reader.num_records()
            reader.close()
        except (ValueError, RuntimeError) as error:
            return [], f"cannot be read as array_record ({error}); copy it again"
        return [0] * count, ""

    def _content(self, path: Path, number: int, offset: int) -> bytes:
        if self._format == "tfrecord":
            return read_record(path, offset)
        reader = ArrayRecordReader(str(path))
        try:
            return reader.read([number])[0]
        finally:
            reader.close()

    def _open_sizes(self) -> dict[str, tuple[int, int]]:
        """The image sizes that features.json leaves open, from the first episode that can be read."""

        def sizes(recording: Recording) -> dict[str, tuple[int, int]]:
            images = next(iter(next(self.read(recording)).steps)).images
            shapes = {name: prepare_image(images[name], 0).shape for name, size in self.schema.cameras.items()
                      if -1 in size}
            return {name: (shape[0], shape[1]) for name, shape in shapes.items()}

        return first_readable(self.recordings(), sizes, f"{self._directory}: holds no episode, expected at least one")


def _name_in(episode: Episode, path: str, fields: Mapping[str, Field]) -> str:
    """The text in a field of the record; "" if it has no such text."""
    value = episode.value(path) if _is_record_text(path, fields) else b""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _is_record_text(path: str, fields: Mapping[str, Field]) -> bool:
    return path in fields and fields[path].kind == "text" and not fields[path].per_step


def version_directory(path: Path) -> Path:
    """The directory with dataset_info.json: `path`, or the newest version in it."""
    if (path / "dataset_info.json").is_file() and (path / "features.json").is_file():
        return path
    inside = [file.parent for file in path.glob("*/dataset_info.json") if (file.parent / "features.json").is_file()]
    if not inside:
        raise ValueError(f"{path}: no dataset_info.json and features.json, expected the directory of a TFDS data set, "
                         "as in .../bridge/0.1.0")
    return max(inside, key=lambda version: [int(part) if part.isdigit() else 0 for part in version.name.split(".")])
