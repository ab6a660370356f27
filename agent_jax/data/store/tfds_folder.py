"""A data set in the folder of TFDS: its name, its features, and the files of each split. Nothing in it is executed.

    dataset_info.json   name, fileFormat, splits: names, records of each file, template of the files' names
    features.json       tfds_features.py

Files lie in the folder, or where a flag allows it (paths.py).
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
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # of TFDS, where the file has none
_MOST_RECORDS = 2**40  # of a file, as dataset_info.json may say


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """The files of a split, in order."""

    name: str
    files: tuple[Path, ...]
    records: tuple[int, ...]  # of each file, as dataset_info.json says
    others: str  # pattern in the folder of what these files are called where their number is another

    def missing(self, file: Path) -> str:
        """Why a file of the split is not there, after its name."""
        found = [] if any(other.is_file() for other in self.files) else sorted(file.parent.glob(self.others))
        if found:
            return (f"missing; {INFO_FILE} lists {len(self.files)} files of split {self.name!r}, found {len(found)} of "
                    f"other names, as {found[-1].name}. Copy {INFO_FILE} and the files anew from one version of the "
                    "data set, or correct shardLengths: one number of records for each file")
        return f"missing, but {INFO_FILE} lists it; copy it, or the whole data set, anew"


@dataclasses.dataclass(frozen=True)
class TfdsFolder:
    """What a folder says of its data set."""

    directory: Path
    name: str
    file_format: str
    features: tfds.features.FeaturesDict
    splits: Mapping[str, SplitFiles]


def read_tfds_folder(directory: Path, allowed: tuple[str, ...] = ()) -> TfdsFolder:
    """The data set in the directory that holds dataset_info.json and features.json.

    Args:
        directory: of the data set.
        allowed: folders outside it in which its files may lie, beside those of the environment (paths.py).

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file does not say what it should, or names files that lie outside the folder.
    """
    folder, file = Folder(directory, allowed), directory / INFO_FILE
    for own in (file, directory / FEATURES_FILE):
        folder.checked(own, str(directory))
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
        # str.format would also take a width, and so all memory.
        text = re.sub(r"\{(\w+)\}", lambda match: known.get(match[1], match[0]), template)
        if "{" in text or "}" in text:
            raise ValueError(f"{where} is {template!r:.100}, expected no names in braces but {', '.join(known)}")
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
