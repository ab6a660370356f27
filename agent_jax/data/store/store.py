"""The canonical store: a TFDS data set in RLDS schema, array_record files, images as encoded bytes, no TensorFlow.

    directory/
      NAME-train.array_record-00000-of-00002   serialized tf.train.Example, one a record
      features.json                            TFDS features: FeaturesDict with a `steps` Dataset (RLDS)
      agent_jax.json                           ours: ActionSpec, StateSpec, how the data were made
      dataset_info.json                        TFDS splits and shard lengths; written last

A record is an episode or a segment of a long one. Any RLDS data set in array_record format can be opened. `writer.py`
writes such a directory; this module reads it.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_jax.data.paths import Folder, check_on_disk
from agent_jax.data.store.episode import split_paths
from agent_jax.data.store.schema import STEPS, Field, features_fields, length_field, quoted_list
from agent_jax.data.store.split import Split
from agent_jax.data.store.tfds_folder import TfdsFolder, read_tfds_folder
from agent_jax.json_files import read_json_object

METADATA_FILE = "agent_jax.json"


@dataclasses.dataclass(frozen=True)
class Store:
    """An opened data set."""

    directory: Path
    name: str
    fields: Mapping[str, Field]
    metadata: Mapping[str, Any]  # of agent_jax.json; empty in other RLDS data sets
    splits: Mapping[str, int]  # records by split
    _folder: TfdsFolder = dataclasses.field(repr=False)

    def split(self, name: str) -> Split:
        """The episodes of a split.

        Raises:
            ValueError: the split is unknown (the message lists the splits) or empty.
            FileNotFoundError: one of its files is missing.
        """
        if name not in self.splits:
            raise ValueError(f"{self.directory}: no split {name!r}; it has {quoted_list(self.splits)}")
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
            ValueError: there is no such field (the message names the nearest ones), or its shape varies.
        """
        if path not in self.fields:
            near = difflib.get_close_matches(path, self.fields, n=3, cutoff=0.4)
            hint = f"nearest: {quoted_list(near)}" if near else f"it has {quoted_list(self.fields)}"
            raise ValueError(f"{self.directory}: no field {path!r}; {hint}")
        field = self.fields[path]
        if field.kind == "array" and -1 in field.shape:
            raise ValueError(f"{self.directory}: field {path!r} has the shape {field.shape}, where -1 varies; expected "
                             "a fixed shape")
        return field

    def text_fields(self, paths: str) -> list[Field]:
        """The fields of an instruction, in order of preference (`Episode.texts`); raises as `field`."""
        return [self.field(path) for path in split_paths(paths)]

    def step_field(self, key: str) -> Field:
        """The field of a key of an ActionSpec or StateSpec: steps/KEY or steps/observation/KEY; raises as `field`."""
        paths = (f"{STEPS}/{key}", f"{STEPS}/observation/{key}")
        return self.field(next((path for path in paths if path in self.fields), paths[0]))


def open_store(path: str | os.PathLike[str]) -> Store:
    """The data set in a directory.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it is not a TFDS data set in array_record format with RLDS schema, or its metadata are damaged or
            refer to files outside the directory.
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
        hint = f"did you mean {str(inside[-1])!r}?" if inside else f"found {quoted_list(found)} in it"
        raise ValueError(f"{directory}: not a TFDS data set, {' and '.join(missing)} missing; {hint}")
    folder = read_tfds_folder(directory)
    if folder.file_format != "array_record":
        raise ValueError(f"{directory}: file format {folder.file_format!r}, expected 'array_record', which allows "
                         "random access; convert it with `python -m agent_jax.data prepare --source rlds --path "
                         f"{directory} --out NEW` (without TensorFlow)")
    fields = features_fields(folder.features)
    length_field(fields, str(directory))
    splits = {name: sum(split.records) for name, split in folder.splits.items()}
    return Store(directory, folder.name, fields, read_metadata(directory), splits, folder)


def read_metadata(directory: Path) -> dict[str, Any]:
    """The content of agent_jax.json; {} without that file.

    Raises:
        ValueError: the file is damaged, or is a link to a file outside the directory; names it.
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
