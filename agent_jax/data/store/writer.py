"""Writes the canonical store shard by shard, in one process or several; resumable, and visible only when complete.

    begin_store(DIR) -> .DIR.partial/ --ShardWriter, in any process--> shards --finish_store(DIR)--> DIR

A shard is written under a temporary name and renamed. `finish_store` writes dataset_info.json last and renames the
whole directory. An interrupted write continues with the finished shards.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from agent_jax.data.store.record_serializer import record_serializer
from agent_jax.data.store.schema import STEPS
from agent_jax.data.store.store import METADATA_FILE, Store, open_store
from agent_jax.data.store.tfds_features import read_features
from agent_jax.json_files import write_json

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # shape and dtype by key, as in ActionSpec.fields

SUMMARY = "summary"  # key of agent_jax.json: counts of `prepare`

# One record a chunk, or random access would read its neighbours too. The images are compressed already.
_OPTIONS = "group_size:1,uncompressed"


def episode_features(image_shape: tuple[int, int, int] | Mapping[str, tuple[int, int, int]], actions: Shapes,
                     observations: Shapes | None = None, encoding: Literal["png", "jpeg"] = "png", *,
                     answers: bool = False, labels: bool = False) -> tfds.features.FeaturesDict:
    """The schema of a record: an episode or a segment of one.

    Args:
        image_shape: height, width, 3 of the camera `rgb`; or those of several cameras, by name.
        actions: fields of steps/.
        observations: fields of steps/observation/ in addition to the images.
        encoding: of the images; PNG is lossless.
        answers: whether records have an `answer`, the text to predict after the instruction.
        labels: whether records have a class `label`.
    """

    def arrays(shapes: Shapes) -> dict[str, Any]:
        tensor = tfds.features.Tensor
        return {key: tensor(shape=shape, dtype=np.dtype(dtype).type) for key, (shape, dtype) in shapes.items()}

    cameras = image_shape if isinstance(image_shape, Mapping) else {"rgb": image_shape}
    images = {name: tfds.features.Image(shape=shape, encoding_format=encoding) for name, shape in cameras.items()}
    return tfds.features.FeaturesDict({
        "episode_id": tfds.features.Text(),
        "recording_id": tfds.features.Text(),  # splits are by recording
        "start": np.int64,  # first step of this record in its episode
        "instruction": tfds.features.Text(),
        **({"answer": tfds.features.Text()} if answers else {}),
        **({"label": np.int64} if labels else {}),  # -1: none
        STEPS: tfds.features.Dataset({
            "observation": {**images, **arrays(observations or {})},
            **arrays(actions),
            "action_weight": np.float32,  # 0: a step not to be imitated; it is part of the history only
            "reward": np.float32,
            "is_first": np.bool_,
            "is_last": np.bool_,
            "is_terminal": np.bool_,
        }),
    })


def begin_store(directory: str | os.PathLike[str], metadata: Mapping[str, Any],
                features: tfds.features.FeaturesDict | None = None) -> Path:
    """Make the temporary directory to write shards into, next to `directory`.

    Args:
        directory: of the finished data set.
        metadata: JSON for agent_jax.json: `action_spec`, `state_spec`, and how the data are made. Shards of an
            interrupted attempt are reused only if its metadata are equal.
        features: schema of the records; if given, it must be equal as well.

    Raises:
        FileExistsError: `directory` exists; nothing is overwritten.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory}: exists; expected a new directory for the data set. Remove it to make the "
                              "data again")
    build = _build_directory(directory)
    file = build / METADATA_FILE
    if build.exists() and not (_same_metadata(file, metadata) and (features is None or _same_schema(build, features))):
        shutil.rmtree(build)
    if not file.is_file():
        build.mkdir(parents=True, exist_ok=True)
        if features is not None:
            features.save_config(str(build))
        write_json(file, metadata)
    return build


def shard_path(directory: Path, name: str, split: str, index: int, count: int) -> Path:
    """The file of shard `index` of `count`, as TFDS names it.

    Raises:
        ValueError: TFDS could not read a split of that name.
    """
    if not is_split_name(split):
        raise ValueError(f"split {split!r}: expected a name of letters, digits, '_' and '-', other than 'all', or "
                         "TFDS cannot read it")
    return directory / f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def is_split_name(name: str) -> bool:
    """Whether TFDS can read a split of that name; "all" means all splits."""
    return bool(re.fullmatch(r"[\w-]+", name)) and name != "all"


def keep_shards(build: Path, shards: Collection[Path]) -> None:
    """Remove all other shards of earlier attempts in `build`, and their temporary files."""
    names = {shard.name for shard in shards}
    for file in build.iterdir():
        shard = re.match(r"\.?(.+\.array_record-\d+-of-\d+)", file.name)
        if shard and shard[1] not in names:
            file.unlink()


def _same_metadata(path: Path, metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata at `path` are equal, except for a summary written just before an interruption."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    found.pop(SUMMARY, None)
    return found == json.loads(json.dumps(metadata))


def _same_schema(build: Path, features: tfds.features.FeaturesDict) -> bool:
    """Whether features.json in `build` describes the same features."""
    if not (build / "features.json").is_file():
        return False
    return read_features(build).to_json() == features.to_json()


class ShardWriter:
    """Writes one shard; the file gets its name when the `with` block ends without an error."""

    def __init__(self, path: str | os.PathLike[str], features: tfds.features.FeaturesDict):
        """Open the shard at `path` for records with the schema `features`."""
        self._path = Path(path)
        self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        self._serialize = record_serializer(features)
        self._writer = ArrayRecordWriter(str(self._temporary), _OPTIONS)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record: a nested mapping as in the schema, in which `steps` is a sequence of mappings.

        Raises:
            ValueError: a field is missing or has another shape or type; names it.
        """
        self._writer.write(self._serialize(record))

    def write_serialized(self, record: bytes) -> None:
        """Append a record that `record_serializer` has serialized."""
        self._writer.write(record)

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Rename the shard, or delete it after an error."""
        self._writer.close()
        if kind is None:
            self._temporary.rename(self._path)
        else:
            self._temporary.unlink()


def finish_store(directory: str | os.PathLike[str], name: str, features: tfds.features.FeaturesDict,
                 summary: Mapping[str, Any] | None = None) -> Store:
    """Turn the shards written since `begin_store` into the data set at `directory`, in one rename.

    Raises:
        ValueError: there are no shards, or some are missing.
    """
    directory = Path(directory)
    build = _build_directory(directory)
    for leftover in build.glob(".*.tmp"):  # of a killed writer
        leftover.unlink()
    shards: dict[str, list[Path]] = {}
    for path in sorted(build.glob(f"{glob.escape(name)}-*.array_record-*-of-*")):
        shards.setdefault(path.name.removeprefix(f"{name}-").split(".array_record-")[0], []).append(path)
    if not shards:
        raise ValueError(f"{build}: no shards of {name!r}, expected those of at least one split")
    splits = []
    for split, paths in shards.items():
        count = int(paths[0].name.rsplit("-", 1)[1])
        expected = [shard_path(build, name, split, index, count) for index in range(count)]
        if paths != expected:
            missing = [path.name for path in expected if path not in paths]
            raise ValueError(f"{build}: split {split!r} has {len(paths)} shards, expected {count}; missing: "
                             f"{', '.join(missing)}")
        lengths = []
        for path in paths:
            reader = ArrayRecordReader(str(path))
            lengths.append(str(reader.num_records()))
            reader.close()
        size = sum(path.stat().st_size for path in paths)
        splits.append({"name": split, "shardLengths": lengths, "numBytes": str(size),
                       "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"})
    features.save_config(str(build))
    info = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    if summary is not None:
        file = build / METADATA_FILE
        write_json(file, {**json.loads(file.read_text()), SUMMARY: summary})
    (build / "dataset_info.json").write_text(json.dumps(info, indent=2))
    build.rename(directory)
    return open_store(directory)


def write_store(directory: str | os.PathLike[str], name: str, features: tfds.features.FeaturesDict,
                episodes: Mapping[str, Iterable[Mapping[str, Any]]], metadata: Mapping[str, Any]) -> Store:
    """Write a whole data set in one process, one shard a split.

    Splits that an earlier attempt finished are reused if name, features and metadata are equal, so `metadata` must
    describe how the episodes are made.

    Raises:
        FileExistsError: `directory` exists.
        ValueError: a record does not match the schema.
    """
    build = begin_store(directory, metadata, features)
    paths = {split: shard_path(build, name, split, 0, 1) for split in episodes}
    keep_shards(build, list(paths.values()))
    for split, path in paths.items():
        if not path.exists():
            with ShardWriter(path, features) as writer:
                for record in episodes[split]:
                    writer.write(record)
    return finish_store(directory, name, features)


def _build_directory(directory: Path) -> Path:
    return directory.parent / f".{directory.name}.partial"
