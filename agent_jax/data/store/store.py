"""The canonical store: a TFDS data set in RLDS schema, array_record files, images as encoded bytes, no TensorFlow.

    directory/
      NAME-train.array_record-00000-of-00002   serialized tf.train.Example, one a record
      features.json                            TFDS features: FeaturesDict with a `steps` Dataset (RLDS)
      agent_jax.json                           ours: ActionSpec, StateSpec, how the data was made
      dataset_info.json                        TFDS splits and shard lengths; written last

A record is an episode, or a segment of a long one. Any other RLDS data set of this format opens just as well.
`writer.py` makes such a directory; this module reads it.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from agent_jax.data.paths import Folder, check_on_disk
from agent_jax.data.prepare.sources.source import BadDataError
from agent_jax.data.store.tfds_folder import SplitFiles, TfdsFolder, read_tfds_folder
from agent_jax.json_files import read_json_object

# The tf.train.Example that both TFRecord and array_record files hold; protobuf makes the class as it is imported.
Example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
METADATA_FILE = "agent_jax.json"
STEPS = "steps"  # RLDS: the field that holds the time steps of a record


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a record, or of each of its steps."""

    path: str  # "episode_id", "steps/observation/rgb"
    kind: Literal["image", "text", "array"]
    per_step: bool
    shape: tuple[int, ...]  # of one value; of a decoded image; empty for texts and scalars; -1: it varies
    dtype: np.dtype[Any]
    encoding: str = ""  # of an image: "png", "jpeg"; empty: not said

    @property
    def is_image(self) -> bool:
        """Whether its values are pictures of 8 bits a channel: encoded ones, or tensors of uint8 (height, width, 3)."""
        if self.dtype != np.uint8:
            return False
        return self.kind == "image" or (len(self.shape) == 3 and self.shape[2] == 3 and min(self.shape) > 0)


class RecordError(BadDataError):
    """A record cannot be read, or does not hold what features.json declares; names file, split and record."""


class Episode:
    """One record: an episode or a segment, parsed but with its images still encoded."""

    def __init__(self, serialized: bytes, where: str, fields: Mapping[str, Field], length_field: Field):
        """Of the bytes of a record; `where` it lies is for messages.

        Raises:
            RecordError: they are no tf.train.Example, or one that lacks the `length_field`.
        """
        try:
            self._features = Example.FromString(serialized).features.feature
        except DecodeError as error:
            raise RecordError(f"{where}: {len(serialized):,} bytes that are no tf.train.Example ({error}). {REPAIR}"
                              ) from error
        self.where, self._fields = where, fields
        each = math.prod(length_field.shape) if length_field.kind == "array" else 1
        self.steps: int = len(self._list(length_field.path)) // each

    def values(self, path: str, start: int, stop: int) -> np.ndarray | list[bytes]:
        """A step field from step `start` to before `stop`: an array (steps, *shape), or a list of bytes.

        Raises:
            RecordError: the record has another number of them than steps.
        """
        field, values = self._fields[path], self._list(path)
        size = math.prod(field.shape) if field.kind == "array" else 1
        if len(values) != size * self.steps and (field.kind != "text" or not field.shape):  # texts may be tensors
            raise RecordError(f"{self.where}: {path!r} holds {len(values)} values, expected {size} for each of "
                              f"{self.steps} steps. {REPAIR}")
        if field.kind != "array":
            return list(values[start:stop])
        # Repeated fields lend their buffer to NumPy; a slice of one would be a Python list, 70 times slower.
        chosen = np.asarray(values)[start * size : stop * size]
        return chosen.astype(field.dtype).reshape(-1, *field.shape)

    def value(self, path: str) -> np.ndarray | bytes:
        """A field of the record itself.

        Raises:
            RecordError: the record has another number of values of it.
        """
        field, values = self._fields[path], self._list(path)
        expected = math.prod(field.shape) if field.kind == "array" else 1
        if len(values) != expected if field.kind == "array" and -1 not in field.shape else not values:
            raise RecordError(f"{self.where}: {path!r} holds {len(values)} values, expected {expected}. {REPAIR}")
        return values[0] if field.kind != "array" else np.asarray(values).astype(field.dtype).reshape(field.shape)

    def texts(self, paths: str) -> list[str]:
        """The instruction at each step: text or 0-padded UTF-8 codes, of each step or of the whole record.

        Args:
            paths: of a field, or of several in order of preference, joined by commas: the first that is filled counts.

        Raises:
            RecordError: there are more or fewer than steps, or than one of the record; or a text is not UTF-8.
        """
        found = [self._texts_of(path) for path in split_paths(paths)]
        return [next(filter(str.strip, of_step), "") for of_step in zip(*found, strict=True)]

    def _texts_of(self, path: str) -> list[str]:
        """The text of one field at each step."""
        field = self._fields[path]
        try:
            if field.kind == "text":
                values = [value.decode("utf-8") for value in self._list(path)]
            else:
                values = _decoded_codes(np.asarray(self._list(path)).reshape(-1, *field.shape))
        except RecordError:
            raise
        except ValueError as error:  # not UTF-8, or numbers that do not divide into texts
            raise RecordError(f"{self.where}: {path!r} holds no texts ({error}). {REPAIR}") from error
        expected = self.steps if field.per_step else 1
        if len(values) != expected:
            raise RecordError(f"{self.where}: {path!r} holds {len(values)} texts, expected {expected}"
                             f"{', one for each step' if field.per_step else ''}")
        return values if field.per_step else values * self.steps

    def _list(self, path: str) -> Any:
        """The repeated values of a field."""
        if path not in self._features:
            raise RecordError(f"{self.where}: the record lacks {path!r}, which features.json declares; found "
                              f"{sorted(self._features)}")
        feature = self._features[path]
        kind = feature.WhichOneof("kind")
        if kind and (kind == "bytes_list") is (self._fields[path].kind == "array"):
            raise RecordError(f"{self.where}: {path!r} holds a {kind}, but features.json declares "
                              f"{self._fields[path].kind}. {REPAIR}")
        return getattr(feature, kind).value if kind else ()


REPAIR = "Copy the file anew, or make the data set anew without this record"


def split_paths(paths: str) -> list[str]:
    """The fields of an instruction, in order of preference, as `a,b`."""
    return [path.strip() for path in paths.split(",")]


def _decoded_codes(codes_NL: np.ndarray) -> list[str]:
    """Texts of 0-padded UTF-8 codes; equal ones in a row are decoded once."""
    changed = np.flatnonzero(np.any(codes_NL[1:] != codes_NL[:-1], axis=1)) + 1
    texts = []
    for first, last in itertools.pairwise([0, *changed.tolist(), len(codes_NL)]):
        if first < last:
            codes = codes_NL[first]
            texts += [codes[codes != 0].astype(np.uint8).tobytes().decode("utf-8")] * (last - first)
    return texts


@dataclasses.dataclass(frozen=True)
class _File:
    """A file, and which of its records are read; the names are array_record's."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Split:
    """Random access to the episodes of a split; cheap to send to a worker process."""

    def __init__(self, files: SplitFiles, where: str, fields: Mapping[str, Field]):
        """Of the files of a split; `where` the data set lies is for messages."""
        self.name, self.fields = files.name, fields
        self._files = files
        parts: Any = [_File(str(file), 0, records, records)
                      for file, records in zip(files.files, files.records, strict=True) if records]
        self._source = ArrayRecordDataSource(parts)
        self._length_field = length_field(fields, where)

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Episode]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Episode:
        return Episode(self.serialized(number), self._where(number), self.fields, self._length_field)

    def serialized(self, number: int) -> bytes:
        """The record as it lies in its file: a tf.train.Example.

        Raises:
            IndexError: there are not so many.
            RecordError: it cannot be read.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        try:
            return bytes(self._source[number])
        except (OSError, ValueError, IndexError, RuntimeError) as error:  # of array_record
            raise RecordError(f"{self._where(number)}: cannot be read ({error}). {REPAIR}") from error

    def _where(self, number: int) -> str:
        ends = itertools.accumulate(self._files.records)
        file = next(file for file, end in zip(self._files.files, ends, strict=True) if number < end)
        return f"{file}, split {self.name!r}, record {number}"


@dataclasses.dataclass(frozen=True)
class Store:
    """An opened data set."""

    directory: Path
    name: str
    fields: Mapping[str, Field]
    metadata: Mapping[str, Any]  # of agent_jax.json; empty in a foreign data set
    splits: Mapping[str, int]  # records by split
    _folder: TfdsFolder = dataclasses.field(repr=False)

    def split(self, name: str) -> Split:
        """The episodes of a split.

        Raises:
            ValueError: for an unknown split (the message lists the splits), or one whose files are missing.
        """
        if name not in self.splits:
            raise ValueError(f"{self.directory}: no split {name!r}; it has {_list_of(self.splits)}")
        if not self.splits[name]:
            raise ValueError(f"{self.directory}: split {name!r} is empty")
        split = self._folder.splits[name]
        for file in split.files:
            if not file.is_file():
                raise FileNotFoundError(f"{file}: {split.missing(file)}")
        return Split(split, str(self.directory), self.fields)

    def files(self, split: str) -> list[Path]:
        """The shards of a split, in order."""
        return list(self._folder.splits[split].files)

    def field(self, path: str) -> Field:
        """The field at a path.

        Raises:
            ValueError: if there is none; the message names the nearest.
        """
        if path not in self.fields:
            near = difflib.get_close_matches(path, self.fields, n=3, cutoff=0.4)
            hint = f"nearest: {_list_of(near)}" if near else f"it has {_list_of(self.fields)}"
            raise ValueError(f"{self.directory}: no field {path!r}; {hint}")
        field = self.fields[path]
        if field.kind == "array" and -1 in field.shape:
            raise ValueError(f"{self.directory}: field {path!r} has the shape {field.shape}, where -1 varies; expected "
                             "a fixed one")
        return field

    def text_fields(self, paths: str) -> list[Field]:
        """The fields of an instruction, in order of preference (`Episode.texts`); raises as `field`."""
        return [self.field(path) for path in split_paths(paths)]

    def step_field(self, key: str) -> Field:
        """The field of a key of an ActionSpec or StateSpec: steps/KEY, else steps/observation/KEY."""
        paths = (f"{STEPS}/{key}", f"{STEPS}/observation/{key}")
        return self.field(next((path for path in paths if path in self.fields), paths[0]))


def open_store(path: str | os.PathLike[str]) -> Store:
    """The data set in a directory.

    Args:
        path: the directory that holds dataset_info.json and features.json.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: the directory holds no TFDS data set, not one in array_record format, or not one in RLDS schema; or
            what it says of itself is damaged, or leads out of it.
    """
    directory = Path(path)
    check_on_disk(path, "data set directory")
    if not directory.is_dir():
        raise FileNotFoundError(f"data set directory {str(directory)!r}: not found; expected a directory with "
                                "dataset_info.json and features.json")
    missing = [name for name in ("dataset_info.json", "features.json") if not (directory / name).is_file()]
    if missing:
        inside = sorted(file.parent for file in directory.glob("*/dataset_info.json"))
        inside = inside or sorted(file.parent for file in directory.glob("*/*/dataset_info.json"))
        found = sorted(file.name for file in directory.iterdir())[:5]
        hint = f"did you mean {str(inside[-1])!r}?" if inside else f"found {_list_of(found)} in it"
        raise ValueError(f"{directory}: not a TFDS data set, {' and '.join(missing)} missing; {hint}")
    folder = read_tfds_folder(directory)
    if folder.file_format != "array_record":
        raise ValueError(f"{directory}: file format {folder.file_format!r}, expected 'array_record', which can be read "
                         "at random; convert it with `python -m agent_jax.data prepare --source rlds --path "
                         f"{directory} --out NEW` (without TensorFlow)")
    fields = features_fields(folder.features)
    length_field(fields, str(directory))
    splits = {name: sum(split.records) for name, split in folder.splits.items()}
    return Store(directory, folder.name, fields, read_metadata(directory), splits, folder)


def read_metadata(directory: Path) -> dict[str, Any]:
    """The content of agent_jax.json; {} where there is none.

    Raises:
        ValueError: it is damaged, or a link that leads out of the directory; names it.
    """
    file = directory / METADATA_FILE
    if not file.is_file():
        return {}
    found = read_json_object(Folder(directory).checked(file, str(directory)))
    for key, kinds, expected in (("action_spec", dict, "an object"), ("state_spec", dict, "an object"),
                                 ("rate_hz", (int, float), "a number")):
        if found.get(key) is not None and not isinstance(found[key], kinds):
            raise ValueError(f"{file}: {key} is {found[key]!r:.100}, expected {expected}")
    return found


def length_field(fields: Mapping[str, Field], where: str) -> Field:
    """The field whose values tell how many steps a record has.

    Raises:
        ValueError: the data have no field of steps; names `where` they are.
    """
    steps = [field for field in fields.values() if field.per_step
             and (field.kind != "array" or all(size > 0 for size in field.shape))]
    if not steps:
        raise ValueError(f"{where}: no {STEPS!r} field that is a Dataset of time steps (RLDS), with a value of fixed "
                         f"shape in each; it has {_list_of(fields)}")
    # Counting steps costs least on a scalar.
    return min(steps, key=lambda field: (field.kind != "array", -1 in field.shape, field.shape))


def _list_of(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names) or "none"


def features_fields(features: Any) -> dict[str, Field]:
    """The flat fields of TFDS features, by path."""
    fields: dict[str, Field] = {}

    def walk(feature: Any, path: str, per_step: bool) -> None:
        # Scalar and Text are Tensors.
        leaf: Any = feature if isinstance(feature, (tfds.features.Image, tfds.features.Tensor)) else None
        shape = tuple(-1 if size is None else size for size in leaf.shape) if leaf else ()
        if isinstance(feature, tfds.features.Dataset) and path == STEPS:
            walk(feature.feature, path, True)
        elif isinstance(feature, tfds.features.FeaturesDict):
            for key, inner in feature.items():
                walk(inner, f"{path}/{key}" if path else key, per_step)
        elif isinstance(feature, tfds.features.Image):
            encoding = str(feature.encoding_format or "")
            fields[path] = Field(path, "image", per_step, shape, np.dtype(leaf.np_dtype), encoding)
        elif leaf:
            dtype: np.dtype[Any] = np.dtype(leaf.get_serialized_info().np_dtype)  # an encoded array counts as bytes
            fields[path] = Field(path, "array" if dtype.kind in "biuf" else "text", per_step, shape, dtype)

    walk(features, "", False)
    return fields
