"""Reads data of any format for `doctor data`, without a config: episodes, and what is known about their numbers.

    DIR with array_record + features.json   the canonical store, and other RLDS data
    any other folder or file                a source of `prepare`; its kind is recognised by its files

A sample of the episodes is read one after another, evenly spaced over each split.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.images import prepare_image
from agent_jax.data.inspect.config import complete, read_check_config, specs_of
from agent_jax.data.prepare.config import PrepareConfig, prepare_config, read_fields
from agent_jax.data.prepare.sources import CLASSES, open_source
from agent_jax.data.prepare.sources.rlds.rlds import version_directory
from agent_jax.data.prepare.sources.source import Recording, SourceEpisode, SourceStep
from agent_jax.data.store.episode import Episode
from agent_jax.data.store.schema import Field, features_fields
from agent_jax.data.store.split import Split
from agent_jax.data.store.store import Store, open_store
from agent_jax.data.store.tfds_folder import read_tfds_folder
from agent_jax.doctor.episodes import (
    MOST_STEPS,
    THUMBNAIL,
    Fingerprint,
    RawEpisode,
    Step,
    array_columns,
    compared_steps,
    fingerprint,
    spec_columns,
)

_MOST_NUMBERS = 64  # of a field: more are an embedding or an instruction in codes, not an action or a state
_NOT_DATA = ("action_weight", "reward", "discount", "is_first", "is_last", "is_terminal")
UNREADABLE = (ValueError, IndexError, RuntimeError, OSError)  # of protobuf, array_record and FFmpeg


def open_reader(path: Path, kind: str, overrides: Sequence[str]) -> Reader:
    """A reader of the data at `path`.

    Args:
        path: folder or file.
        kind: "" to recognise it, or a kind of `prepare --source`.
        overrides: `--config.FIELD=VALUE`, of a domain for a store, as for `check`, else of `prepare`.

    Raises:
        FileNotFoundError, ValueError: there are no data, or none that can be read.
        ModuleNotFoundError: a library for this format is not installed.
    """
    kind = kind or _kind_of(path)
    if kind == "rlds" and read_tfds_folder(version_directory(path)).file_format == "array_record":
        return StoreReader(open_store(version_directory(path)), overrides)
    given = {**_defaults(kind, path, read_fields("", overrides, PrepareConfig))}
    return SourceReader(kind, path, prepare_config(given))


def sample(splits: Mapping[str, int], most: int) -> list[tuple[str, int]]:
    """At most `most` records (0: all), evenly spaced, small splits before large ones.

    A split gets an equal share; what a small split leaves goes to the others.
    """
    chosen: dict[str, list[int]] = {}
    left = most
    for place, (split, count) in enumerate(sorted(splits.items(), key=lambda item: item[1])):
        share = min(count, left // (len(splits) - place)) if most else count
        chosen[split] = sorted(set(np.linspace(0, count - 1, share).round().astype(int).tolist())) if share else []
        left -= share
    return [(split, number) for split in splits for number in chosen[split]]


class StoreReader:
    """Reads a store, or another RLDS data set in array_record."""

    def __init__(self, store: Store, overrides: Sequence[str] = ()):
        self.store = store
        self.notes: list[str] = []
        self.splits = {name: count for name, count in store.splits.items() if count}
        config = read_check_config(store.directory, "", overrides)
        cameras = config.cameras or tuple(_image_paths(store.fields))
        self.config = complete(dataclasses.replace(config, cameras=cameras), store)
        try:
            specs = specs_of(self.config, store)
        except UNREADABLE as error:
            specs = None
            self.notes.append(f"the specs cannot be used: {error}")
        self.rate_hz, self.absolute = float(store.metadata.get("rate_hz") or 0), None
        if specs:
            self.rate_hz = self.rate_hz or specs.action.rate_hz
            self.absolute = specs.action.absolute
            self.actions, self._action_paths = spec_columns(specs.action), self._paths(specs.action)
            state = specs.state
            self.states, self._state_paths = (spec_columns(state), self._paths(state)) if state else ([], [])
        else:
            self._action_paths, self._state_paths = _number_paths(store.fields)
            self.actions, self.states = (
                [column for path in paths for column in array_columns(
                    _short(path), _size(store.fields[path].shape))]
                for paths in (self._action_paths, self._state_paths))
        self._time = next((path for path, field in store.fields.items() if field.per_step and _is_time(path)
                           and field.kind == "array" and not field.shape), "")

    def read(self, split: str, number: int) -> RawEpisode:
        """The record; images are decoded by whoever reads the steps."""
        episode = self._split(split)[number]
        count = min(episode.steps, MOST_STEPS)
        images = {_short(camera): episode.values(camera, 0, count) for camera in self.config.cameras}
        actions, states = (self._numbers(episode, paths, count) for paths in (self._action_paths, self._state_paths))
        steps = (Step({camera: frames[t] for camera, frames in images.items()}, actions[t], states[t])
                 for t in range(count))
        times_s = np.asarray(episode.values(self._time, 0, count), np.float64) if self._time else np.zeros(0)
        return RawEpisode(split, number, _first(episode.texts(self.config.instruction)), steps, times_s)

    def fingerprints(self, most: int) -> list[Fingerprint]:
        """Of the first records of each split; only few of their images are decoded. Unreadable ones are left out."""
        found = []
        for split, count in self.splits.items():
            for number in range(min(count, most)):
                try:
                    episode = self._split(split)[number]
                    steps = min(episode.steps, MOST_STEPS)
                    thumbnails = [prepare_image(episode.values(camera, t, t + 1)[0], THUMBNAIL)
                                  for camera in self.config.cameras for t in compared_steps(steps)]
                    actions = self._numbers(episode, self._action_paths, steps)
                    found.append(fingerprint(split, number, actions, thumbnails))
                except UNREADABLE:
                    continue
        return found

    @functools.cache  # noqa: B019  (opens files; there is one reader a program)
    def _split(self, name: str) -> Split:
        return self.store.split(name)

    def _paths(self, spec: ActionSpec | StateSpec) -> list[str]:
        return [self.store.step_field(key).path for key in spec.fields]

    def _numbers(self, episode: Episode, paths: Sequence[str], count: int) -> np.ndarray:
        """float64 (count, columns)."""
        parts = [np.asarray(episode.values(path, 0, count), np.float64).reshape(count, -1) for path in paths]
        return np.concatenate([np.zeros((count, 0)), *parts], axis=1)


class SourceReader:
    """Reads data that are not prepared, through a source of `prepare`."""

    def __init__(self, kind: str, path: Path, config: PrepareConfig):
        self._source = open_source(kind, path, config)
        self.notes = [f"{name}: {camera}" for name, camera in config.cameras.items()] + [*self._source.schema.notes]
        self._recordings: dict[str, list[Recording]] = {}
        for recording in self._source.recordings():
            self._recordings.setdefault(recording.split or "all", []).append(recording)
        self.splits = {split: len(of_split) for split, of_split in self._recordings.items()}
        self.rate_hz, self.absolute = self._source.rate_hz, None
        schema = self._source.schema
        action, state = (kind.from_dict(_closed(spec)) if spec else None for kind, spec in
                         ((ActionSpec, self._source.action_spec), (StateSpec, self._source.state_spec)))
        # A field that the user or `_defaults` named "state" is one, whatever the source takes it for.
        self._action_keys = [*action.fields] if action else [key for key in schema.actions if key != "state"]
        self._state_keys = [*state.fields] if state else [
            key for key in [*schema.observations, *schema.actions] if key not in self._action_keys]
        shapes = {**schema.actions, **schema.observations}
        self.actions, self.states = (
            spec_columns(spec) if spec else
            [column for key in keys for column in array_columns(key, _size(shapes[key][0]))]
            for spec, keys in ((action, self._action_keys), (state, self._state_keys)))
        if isinstance(action, ActionSpec) and "action_spec" not in schema.defaults:  # a default is a guess
            self.absolute = action.absolute
        self._times = _LeRobotTimes(path) if kind == "lerobot" else {}

    def read(self, split: str, number: int) -> RawEpisode:
        """The recording; several episodes in it are joined, and the first instruction is taken."""
        recording = self._recordings[split][number]
        episodes = iter(self._source.read(recording))
        first = next(episodes, None)
        if first is None:
            raise BadDataError(f"{recording.where}: holds no episode, expected at least one")
        times_s = self._times[recording.name] if recording.name in self._times else np.zeros(0)
        return RawEpisode(split, number, first.instruction, self._steps(itertools.chain([first], episodes)), times_s)

    def fingerprints(self, most: int) -> list[Fingerprint]:
        """None: videos would have to be decoded."""
        return []

    def _steps(self, episodes: Iterator[SourceEpisode]) -> Iterator[Step]:
        for episode in episodes:
            for step in episode.steps:
                yield Step(step.images, _vector(step, self._action_keys), _vector(step, self._state_keys))


Reader = StoreReader | SourceReader  # `read` raises one of UNREADABLE, at once or while its steps are read


def _vector(step: SourceStep, keys: Sequence[str]) -> np.ndarray:
    values = {**step.actions, **step.observations}
    return np.concatenate([np.zeros(0), *(np.ravel(np.asarray(values[key], np.float64)) for key in keys)])


class _LeRobotTimes(dict[str, np.ndarray]):
    """Times of the rows of an episode by the name of its recording, read when asked for."""

    def __init__(self, path: Path):
        super().__init__()
        from agent_jax.data.prepare.sources.lerobot.meta import read_info, read_meta
        from agent_jax.data.prepare.sources.lerobot.rows import EpisodeTables

        info = read_info(path)
        meta = read_meta(path, info, info.features(), ())
        self._entries = {f"episode_{entry.index:06d}": entry for entry in meta.episodes}
        self._tables = EpisodeTables(["timestamp"])

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> np.ndarray:
        from agent_jax.data.prepare.sources.parquet import column_numbers

        entry = self._entries[name]
        return column_numbers(self._tables.rows(entry), "timestamp", 1, str(entry.table))[:, 0].astype(np.float64)


def _closed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with any bounds in place of those that are left to the data, since only its names are used."""
    groups = [{**group, "parts": [{"low": -1.0, "high": 1.0, **{key: value for key, value in part.items()
                                                               if key != "bounds"}} if "bounds" in part else part
                                  for part in group["parts"]]} for group in spec["groups"]]
    return {**spec, "groups": groups}


def _kind_of(path: Path) -> str:
    """The source of `prepare` whose files lie at `path`.

    Raises:
        FileNotFoundError, ValueError: nothing is there, or no known kind.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or file; expected a data set, or ORG/NAME of one on the "
                                "Hugging Face hub")
    signs = {"lerobot": ("meta/info.json",), "rlds": ("dataset_info.json", "*/dataset_info.json"),
             "calvin": ("training/ep_start_end_ids.npy", "ep_start_end_ids.npy"), "robomimic": ("*.hdf5", "*.h5"),
             "bleeding_edge": ("*_data.npz",), "vpt": ("*.jsonl",), "gamepad": ("*.csv",)}
    if path.is_file():
        signs = dict.fromkeys(signs, ()) | {"robomimic": (path.name,) if path.suffix in (".hdf5", ".h5") else ()}
    folder = path if path.is_dir() else path.parent
    for kind, patterns in signs.items():
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            return kind
    found = sorted(file.name for file in folder.iterdir())[:5]
    raise ValueError(f"{path}: found {', '.join(found) or 'nothing'}, which is no known format; name it by --source "
                     f"KIND, one of {', '.join(CLASSES)}")


def _defaults(kind: str, path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, completed so that a source needs no config: all cameras, and all numbers of RLDS data."""
    found: dict[str, Any] = {}
    if kind == "lerobot" and "cameras" not in given:
        from agent_jax.data.prepare.sources.lerobot.meta import read_info

        found["cameras"] = {name.removeprefix("observation.").removeprefix("images."): name
                            for name in read_info(path).features().cameras}
    if kind == "rlds":
        fields = features_fields(read_tfds_folder(version_directory(path)).features)
        action, state = _number_paths(fields)
        if "cameras" not in given:
            found["cameras"] = {_short(name): name for name in _image_paths(fields)}
        if "fields" not in given and "action_spec" not in given and action:
            found["fields"] = {"action": ",".join(action), **({"state": ",".join(state)} if state else {})}
    return {**found, **given}


def _short(path: str) -> str:
    """A name for a field of steps: "rgb" for steps/observation/rgb."""
    return path.removeprefix("steps/").removeprefix("observation/").replace("/", ".")


def _number_paths(fields: Mapping[str, Field]) -> tuple[list[str], list[str]]:
    """Paths of the actions and of the states of RLDS data without specs, by their names."""
    paths = [path for path, field in fields.items() if field.per_step and field.kind == "array"
             and 0 <= _size(field.shape) <= _MOST_NUMBERS and path.split("/")[-1] not in _NOT_DATA
             and not _is_time(path)]
    return ([path for path in paths if "action" in path.removeprefix("steps/").split("/")[0]],
            [path for path in paths if path.startswith("steps/observation/")])


def _image_paths(fields: Mapping[str, Field]) -> list[str]:
    """Paths of the images of steps; tensors only where there are no encoded ones."""
    images = [path for path, field in fields.items() if field.per_step and field.is_image]
    return [path for path in images if fields[path].kind == "image"] or images


def _size(shape: Sequence[int]) -> int:
    return -1 if -1 in shape else int(np.prod(shape, dtype=int))


def _is_time(path: str) -> bool:
    return path.split("/")[-1].lower() in ("timestamp", "timestamps", "time", "time_s")


def _first(texts: Sequence[str]) -> str:
    return next((text for text in texts if text.strip()), "")
