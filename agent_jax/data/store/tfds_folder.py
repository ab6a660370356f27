"""Reads the metadata of a TFDS folder: the data set's name, its features, and the files of each split.

    dataset_info.json   name, fileFormat; of each split its name, records of each file, template of the file names
    features.json       tfds_features.py

Files must be inside the folder or below an allowed root (paths.py).
"""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from agent_jax.data.paths import Folder
from agent_jax.data.store.tfds_features import FEATURES_FILE, read_features
from agent_jax.json_files import read_json_object

INFO_FILE = "dataset_info.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # of TFDS, if the file has none
_MOST_RECORDS = 2**40  # of a file


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """The files of a split, in order."""

    name: str
    files: tuple[Path, ...]
    records: tuple[int, ...]  # of each file, from dataset_info.json
    pattern: str  # glob pattern of such files, for any number of files

    def missing(self, file: Path) -> str:
        """The rest of the message about a missing file of the split."""
        found = [] if any(other.is_file() for other in self.files) else sorted(file.parent.glob(self.pattern))
        if found:
            return (f"missing; {INFO_FILE} lists {len(self.files)} files of split {self.name!r}, found {len(found)} of "
                    f"other names, as {found[-1].name}. Copy {INFO_FILE} and the files again from one version of the "
                    "data set, or correct shardLengths: one number of records for each file")
        return f"missing, but {INFO_FILE} lists it; copy the file or the whole data set again"


@dataclasses.dataclass(frozen=True)
class TfdsFolder:
    """The metadata of a data set."""

    directory: Path
    name: str
    file_format: str
    features: tfds.features.FeaturesDict
    splits: Mapping[str, SplitFiles]


def read_tfds_folder(directory: Path, allowed: tuple[str, ...] = ()) -> TfdsFolder:
    """Read dataset_info.json and features.json.

    Args:
        directory: of the data set.
        allowed: folders outside it that may contain its files, besides those of the environment (paths.py).

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is damaged, or names files outside the allowed folders.
    """
    folder, file = Folder(directory, allowed), directory / INFO_FILE
    for metadata_file in (file, directory / FEATURES_FILE):
        folder.checked(metadata_file, str(directory))
    info = read_json_object(file)
    name = _text(info, "name", file)
    file_format = _text(info, "fileFormat", file, default="tfrecord")
    splits = info.get("splits", [])
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        raise ValueError(f"{file}: splits is {splits!r:.100}, expected a list of objects")
    found = [_split_files(split, name, file_format, folder, file) for split in splits]
    return TfdsFolder(directory, name, file_format, read_features(directory), {split.name: split for split in found})


def _split_files(split: Mapping[str, Any], dataset: str, file_format: str, folder: Folder, file: Path) -> SplitFiles:
    name = _text(split, "name", file)
    records = _lengths(split, f"{file}: shardLengths of split {name!r}")
    template = _text(split, "filepathTemplate", file, default="") or _TEMPLATE
    fixed = {"DATASET": dataset, "SPLIT": name, "FILEFORMAT": file_format}
    where = f"{file}: filepathTemplate of split {name!r}"

    def filled(index: str, count: str) -> str:
        known = {**fixed, "SHARD_INDEX": index, "NUM_SHARDS": count, "SHARD_X_OF_Y": f"{index}-of-{count}"}
        # str.format would also accept a field width, which can take all memory.
        text = re.sub(r"\{(\w+)\}", lambda match: known.get(match[1], match[0]), template)
        if "{" in text or "}" in text:
            raise ValueError(f"{where} is {template!r:.100}, expected only these names in braces: {', '.join(known)}")
        return text

    digits = max(5, len(str(len(records))))
    files = [folder.file(filled(f"{index:0{digits}}", f"{len(records):0{digits}}"), where)
             for index in range(len(records))]
    return SplitFiles(name, tuple(files), records, glob.escape(Path(filled("\0", "\0")).name).replace("\0", "*"))


def _lengths(split: Mapping[str, Any], place: str) -> tuple[int, ...]:
    lengths = split.get("shardLengths", [])
    if not isinstance(lengths, list):
        raise ValueError(f"{place} is {lengths!r:.100}, expected a list of numbers of records")
    found = []
    for length in lengths:
        number = int(length) if re.fullmatch(r"\d{1,15}", str(length)) else -1
        if not 0 <= number <= _MOST_RECORDS:
            raise ValueError(f"{place}: found {length!r:.100}, expected a number of records, at most {_MOST_RECORDS:,}")
        found.append(number)
    return tuple(found)


def _text(content: Mapping[str, Any], key: str, file: Path, default: str | None = None) -> str:
    value = content.get(key, default)
    if not isinstance(value, str) or (not value and default is None):
        raise ValueError(f"{file}: {key} is {value!r:.100}, expected a text")
    return value
