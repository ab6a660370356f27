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
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

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


class Episode:
    """One record: an episode or a segment, parsed but with its images still encoded."""

    def __init__(self, serialized: bytes, where: str, fields: Mapping[str, Field], length_field: Field):
        self._features = Example.FromString(serialized).features.feature
        self.where, self._fields = where, fields
        each = math.prod(length_field.shape) if length_field.kind == "array" else 1
        self.steps: int = len(self._list(length_field.path)) // each

    def values(self, path: str, start: int, stop: int) -> np.ndarray | list[bytes]:
        """A step field from step `start` to before `stop`: an array (steps, *shape), or a list of bytes."""
        field, values = self._fields[path], self._list(path)
        if field.kind != "array":
            return list(values[start:stop])
        size = math.prod(field.shape)
        # Repeated fields lend their buffer to NumPy; a slice of one would be a Python list, 70 times slower.
        chosen = np.asarray(values)[start * size : stop * size]
        return chosen.astype(field.dtype).reshape(-1, *field.shape)

    def value(self, path: str) -> np.ndarray | bytes:
        """A field of the record itself."""
        field, values = self._fields[path], self._list(path)
        return values[0] if field.kind != "array" else np.asarray(values).astype(field.dtype).reshape(field.shape)

    def texts(self, path: str) -> list[str]:
        """The instruction at each step: text or 0-padded UTF-8 codes, of each step or of the whole record.

        Raises:
            ValueError: there are more or fewer than steps, or than one of the record; or a text is not UTF-8.
        """
        field = self._fields[path]
        if field.kind == "text":
            values = [value.decode("utf-8") for value in self._list(path)]
        else:
            values = _decoded_codes(np.asarray(self._list(path)).reshape(-1, *field.shape))
        expected = self.steps if field.per_step else 1
        if len(values) != expected:
            raise ValueError(f"{self.where}: {path!r} holds {len(values)} texts, expected {expected}"
                             f"{', one for each step' if field.per_step else ''}")
        return values if field.per_step else values * self.steps

    def _list(self, path: str) -> Any:
        """The repeated values of a field."""
        if path not in self._features:
            raise ValueError(f"{self.where}: the record lacks {path!r}, which features.json declares; found "
                             f"{sorted(self._features)}")
        feature = self._features[path]
        kind = feature.WhichOneof("kind")
        return getattr(feature, kind).value if kind else ()


def _decoded_codes(codes_NL: np.ndarray) -> list[str]:
    """Texts of 0-padded UTF-8 codes; equal ones in a row are decoded once."""
    changed = np.flatnonzero(np.any(codes_NL[1:] != codes_NL[:-1], axis=1)) + 1
    texts = []
    for first, last in itertools.pairwise([0, *changed.tolist(), len(codes_NL)]):
        if first < last:
            codes = codes_NL[first]
            texts += [codes[codes != 0].astype(np.uint8).tobytes().decode("utf-8")] * (last - first)
    return texts


class Split:
    """Random access to the episodes of a split; cheap to send to a worker process."""

    def __init__(self, name: str, where: str, source: Any, fields: Mapping[str, Field]):
        self.name, self.fields = name, fields
        self._where, self._source = where, source
        self._length_field = length_field(fields, where)

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Episode]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Episode:
        where = f"{self._where}, split {self.name!r}, record {number}"
        return Episode(self._source[number], where, self.fields, self._length_field)

    def serialized(self, number: int) -> bytes:
        """The record as it lies in its file: a tf.train.Example."""
        return bytes(self._source[number])


@dataclasses.dataclass(frozen=True)
class Store:
    """An opened data set."""

    directory: Path
    name: str
    fields: Mapping[str, Field]
    metadata: Mapping[str, Any]  # of agent_jax.json; empty in a foreign data set
    splits: Mapping[str, int]  # records by split
    _builder: Any = dataclasses.field(repr=False)

    @property
    def features(self) -> tfds.features.FeaturesDict:
        """The TFDS features of its records."""
        return self._builder.info.features

    def split(self, name: str) -> Split:
        """The episodes of a split.

        Raises:
            ValueError: for an unknown split (the message lists the splits), or one whose files are missing.
        """
        if name not in self.splits:
            raise ValueError(f"{self.directory}: no split {name!r}; it has {_list_of(self.splits)}")
        if not self.splits[name]:
            raise ValueError(f"{self.directory}: split {name!r} is empty")
        for file in self.files(name):
            if not file.is_file():
                raise FileNotFoundError(f"{file}: missing, but dataset_info.json lists it; copy the data set anew")
        source = self._builder.as_data_source(name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        return Split(name, str(self.directory), source, self.fields)

    def files(self, split: str) -> list[Path]:
        """The shards of a split, in order."""
        return [Path(path) for path in self._builder.info.splits[split].filepaths]

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
        ValueError: the directory holds no TFDS data set, not one in array_record format, or not one in RLDS schema.
    """
    directory = Path(path)
    if "://" in str(path):
        raise ValueError(f"data set directory {str(path)!r}: array_record reads files of a file system only; mount the "
                         "bucket, as with `gcsfuse --implicit-dirs BUCKET DIR`, and name the directory below DIR")
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
    file_format = json.loads((directory / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    if file_format != "array_record":
        raise ValueError(f"{directory}: file format {file_format!r}, expected 'array_record', which can be read at "
                         f"random; convert it with `python -m agent_jax.data prepare --source rlds --path {directory} "
                         "--out NEW` (without TensorFlow)")
    builder = tfds.builder_from_directory(str(directory))
    fields = features_fields(builder.info.features)
    length_field(fields, str(directory))
    own = directory / METADATA_FILE
    metadata = json.loads(own.read_text()) if own.is_file() else {}
    splits = {name: split.num_examples for name, split in builder.info.splits.items()}
    return Store(directory, builder.info.name, fields, metadata, splits, builder)


def length_field(fields: Mapping[str, Field], where: str) -> Field:
    """The field whose values tell how many steps a record has.

    Raises:
        ValueError: the data have no field of steps; names `where` they are.
    """
    steps = [field for field in fields.values() if field.per_step]
    if not steps:
        raise ValueError(f"{where}: no {STEPS!r} field that is a Dataset of time steps (RLDS); it has "
                         f"{_list_of(fields)}")
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
            fields[path] = Field(path, "image", per_step, shape, np.dtype(np.uint8), encoding)
        elif leaf:
            dtype: np.dtype[Any] = np.dtype(leaf.get_serialized_info().np_dtype)  # an encoded array counts as bytes
            fields[path] = Field(path, "array" if dtype.kind in "biuf" else "text", per_step, shape, dtype)

    walk(features, "", False)
    return fields
