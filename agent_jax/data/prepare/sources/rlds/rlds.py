"""RLDS data sets of TFDS, as TFRecord or array_record, read without TensorFlow: Open-X, Language-Table and their kin.

    1.0.0/
      NAME-train.tfrecord-00000-of-00002   one serialized tf.train.Example an episode
      NAME-val.tfrecord-00000-of-00001
      features.json                        what is in them
      dataset_info.json                    splits, episodes of each file

A recording is an episode, or the records that name one `recording_id`. What lies in array_record already need not be
prepared: it is trained on as it is. Without a split other than `train` a share of the recordings is tested. A change of
the instruction within an episode divides it. A record's `answer` (text) and `label` (a whole number) are kept.

`config.cameras`, `config.fields` and `config.instruction` name features by path (`steps/observation/image_0`) or by
what follows `steps/`, `steps/observation/` or `steps/action/`. A field may join several, as
`config.fields.action=world_vector,rotation_delta,open_gripper`. The format knows no rate; `config.rate_hz` states it.
Of several instructions, `config.instruction=a,b`, the first that is filled counts at each step.

Options:
    last_action: "keep" (default), or "drop": RLDS leaves the last action of an episode without meaning, and where the
        writer has put none there, its weight is to be 0.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import declared_spec
from agent_jax.data.prepare.sources.rlds.features import FeatureNames, step_image_sizes
from agent_jax.data.prepare.sources.rlds.tfrecord import read_record, record_offsets
from agent_jax.data.prepare.sources.source import BadDataError, Recording, Schema, SourceEpisode, SourceStep
from agent_jax.data.store.episode import Episode
from agent_jax.data.store.schema import Field, features_fields, length_field
from agent_jax.data.store.store import METADATA_FILE, read_metadata
from agent_jax.data.store.tfds_folder import read_tfds_folder

_TEST_NAMES = ("test", "val", "valid", "validation", "eval")  # the first that the data have becomes "test"


def open_source(path: Path, config: PrepareConfig) -> RldsSource:
    """The data set in the directory `path`, or in the newest version below it.

    Raises:
        ValueError: it is no TFDS data set of episodes, or the config names what it does not have.
    """
    return RldsSource(_version_directory(path), config)


class RldsSource:
    """An opened RLDS data set; see `source.Source`."""

    def __init__(self, directory: Path, config: PrepareConfig):
        """Of the directory that holds dataset_info.json."""
        unknown = sorted(set(config.options) - {"last_action"})
        last_action = config.options.get("last_action", "keep")
        if unknown or last_action not in ("keep", "drop"):
            found = f"config.options.{unknown[0]}" if unknown else f"config.options.last_action={last_action!r}"
            raise ValueError(f"{found}: the source rlds has the one option last_action, 'keep' or 'drop'")
        self._folder = read_tfds_folder(directory, config.allow_root)
        self._directory, self._fields = directory, features_fields(self._folder.features)
        self._format = self._folder.file_format
        if self._format not in ("tfrecord", "array_record"):
            raise ValueError(f"{directory}: file format {self._format!r}, expected tfrecord or array_record")
        self._length_field = length_field(self._fields, str(directory))
        metadata = read_metadata(directory)
        self.action_spec: Mapping[str, Any] = config.action_spec or metadata.get("action_spec") or {}
        self.state_spec: Mapping[str, Any] = config.state_spec or metadata.get("state_spec") or {}
        spec = declared_spec(ActionSpec, self.action_spec)
        state = declared_spec(StateSpec, self.state_spec)
        own_hz = float(metadata.get("rate_hz") or 0)
        if own_hz and config.rate_hz and abs(config.rate_hz / own_hz - 1) > 0.01:
            raise ValueError(f"config.rate_hz={config.rate_hz:g}: {directory / METADATA_FILE} says {own_hz:g} steps a "
                             "second, and this source takes all of them; leave it out, or prepare the original data at "
                             "that rate")
        self.rate_hz: float = config.rate_hz or own_hz or (spec.rate_hz if spec else 0.0)
        self._drop_last = last_action == "drop"
        names = FeatureNames(str(directory), self._fields, config)
        self._instruction, self._text = names.instruction(), config.instruction_text
        self._cameras = names.cameras()
        self._answers = _is_record_text("answer", self._fields)
        label = self._fields.get("label")
        self._labels = bool(label and not label.per_step and label.shape == () and label.dtype.kind in "iu")
        self._actions, self._states = names.numbers(spec, state, required=not (self._answers or self._labels))
        shapes = {key: (shape, dtype) for key, (shape, dtype, _) in {**self._actions, **self._states}.items()}
        self._sizes = step_image_sizes(self._fields, self._cameras)
        self._shapes = shapes
        self._config = config

    @property
    def schema(self) -> Schema:
        """Fields of all steps; where features.json leaves the size of images open, the first image says it."""
        open_ended = [name for name, size in self._sizes.items() if -1 in size]
        if open_ended and not self._config.image_size:
            self._sizes |= self._first_sizes(open_ended)
        return Schema(cameras=self._sizes, actions={key: self._shapes[key] for key in self._actions},
                      observations={key: self._shapes[key] for key in self._states}, answers=self._answers,
                      labels=self._labels)

    def recordings(self) -> list[Recording]:
        """Every recording, split by split and file by file; a file that cannot be read on is one more, which tells so.

        Records are read for what they name as their recording, where there is such a field.
        """
        splits = self._folder.splits
        test = next((name for name in _TEST_NAMES if name in splits), "")
        found: dict[tuple[str, str], Recording] = {}
        for split, info in splits.items():
            stored = ("test" if split == test else split) if len(splits) > 1 else ""
            for shard, (path, declared) in enumerate(zip(info.files, info.records, strict=True)):
                offsets, wrong = self._offsets(path) if path.is_file() else ([], info.missing(path))
                if not wrong and len(offsets) != declared:
                    wrong = f"holds {len(offsets)} records, but dataset_info.json says {declared}; copy it anew"
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
        """The file of its records, and what says how to read them."""
        records = [recording.where] if isinstance(recording.detail, str) else [path for path, *_ in recording.detail]
        about = [self._directory / name for name in ("features.json", "dataset_info.json", METADATA_FILE)]
        return [*about, *map(Path, records)]

    def read(self, recording: Recording) -> Iterator[SourceEpisode]:
        """The episode of each of its records, in parts where the instruction changes.

        Raises:
            BadDataError: the record is damaged, or holds other fields than features.json says.
        """
        if isinstance(recording.detail, str):
            raise BadDataError(f"{recording.where}: {recording.detail}")
        for path, number, offset in recording.detail:
            name = recording.name if len(recording.detail) == 1 else f"{recording.name}/{number}"
            yield from self._read_record(Path(path), number, offset, name)

    def _read_record(self, path: Path, number: int, offset: int, name: str) -> Iterator[SourceEpisode]:
        """The episode of a record; `name` is for one that has none of its own."""
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
        answer = bytes(episode.value("answer")).decode("utf-8", "replace") if self._answers else ""
        label = int(episode.value("label")) if self._labels else -1
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
        """A key's values at all steps: one field, or several side by side."""
        parts = [np.asarray(episode.values(path, 0, episode.steps)) for path in paths]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).reshape(-1, *shape)

    def _episode(self, path: Path, number: int, offset: int) -> Episode:
        content = self._content(path, number, offset)
        return Episode(content, f"{path}, record {number}", self._fields, self._length_field)

    def _recording_id(self, path: Path, number: int, offset: int) -> str:
        """What a record names as its recording; "" where it names none, or cannot be read."""
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
            return [], f"cannot be read as array_record ({error}); copy it anew"
        return [0] * count, ""

    def _content(self, path: Path, number: int, offset: int) -> bytes:
        if self._format == "tfrecord":
            return read_record(path, offset)
        reader = ArrayRecordReader(str(path))
        try:
            return reader.read([number])[0]
        finally:
            reader.close()

    def _first_sizes(self, names: list[str]) -> dict[str, tuple[int, int]]:
        from agent_jax.data.images import prepare_image

        for recording in self.recordings():
            try:
                step = next(iter(next(self.read(recording)).steps))
                return {name: prepare_image(step.images[name], 0).shape[:2] for name in names}
            except BadDataError:
                continue
        raise BadDataError(f"{self._directory}: not one episode can be read; copy the data anew")


def _name_in(episode: Episode, path: str, fields: Mapping[str, Field]) -> str:
    """The text in a field of the record; "" where it has no such text."""
    value = episode.value(path) if _is_record_text(path, fields) else b""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _is_record_text(path: str, fields: Mapping[str, Field]) -> bool:
    return path in fields and fields[path].kind == "text" and not fields[path].per_step


def _version_directory(path: Path) -> Path:
    """The directory with dataset_info.json: `path`, or the newest version in it."""
    if (path / "dataset_info.json").is_file() and (path / "features.json").is_file():
        return path
    inside = [file.parent for file in path.glob("*/dataset_info.json") if (file.parent / "features.json").is_file()]
    if not inside:
        raise ValueError(f"{path}: no dataset_info.json and features.json, expected the directory of a TFDS data set, "
                         "as in .../bridge/0.1.0")
    return max(inside, key=lambda version: [int(part) if part.isdigit() else 0 for part in version.name.split(".")])
