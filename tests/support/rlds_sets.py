"""Writes RLDS data sets with other writers: array_record by TFDS, TFRecord by tensorboardX."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorboardX.record_writer import RecordWriter

STEPS = 6


def jpeg(value: int, size: tuple[int, int] = (16, 24)) -> bytes:
    """A grey JPEG with a gradient, of (height, width)."""
    pixels = np.clip(np.arange(size[1])[None, :, None] * 3 + value + np.zeros((*size, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def bridge_features() -> tfds.features.FeaturesDict:
    """Two cameras and an action of several tensors, as in Open-X."""
    image = tfds.features.Image(shape=(16, 24, 3), encoding_format="jpeg")
    return tfds.features.FeaturesDict({
        "steps": tfds.features.Dataset({
            "observation": {"image_0": image, "image_1": image,
                            "state": tfds.features.Tensor(shape=(2,), dtype=np.float32)},
            "action": {"world_vector": tfds.features.Tensor(shape=(2,), dtype=np.float32), "open_gripper": np.bool_},
            "language_instruction": tfds.features.Text(),
            "is_first": np.bool_, "is_last": np.bool_, "is_terminal": np.bool_,
        }),
    })


def bridge_episode(number: int, length: int = STEPS) -> dict[str, Any]:
    """An episode; its world_vector stays within 0.1."""
    return {"steps": [
        {"observation": {"image_0": io.BytesIO(jpeg(10 * number + t)), "image_1": io.BytesIO(jpeg(200 - number)),
                         "state": np.asarray([number, t], np.float32)},
         "action": {"world_vector": np.asarray([number, t], np.float32) / 100, "open_gripper": t % 2 == 1},
         "language_instruction": f"put away number {number}",
         "is_first": t == 0, "is_last": t == length - 1, "is_terminal": t == length - 1}
        for t in range(length)
    ]}


def bridge_set(directory: Path, file_format: Literal["array_record", "tfrecord"], episodes: Mapping[str, int], *,
               per_file: int = 3, change: Callable[[int, dict[str, Any]], None] | None = None) -> Path:
    """A data set of `episodes` by split in `directory`/bridge/0.1.0; `change` may edit an episode by its number."""
    number = 0
    made: dict[str, list[dict[str, Any]]] = {}
    for split, count in episodes.items():
        for _ in range(count):
            episode = bridge_episode(number)
            if change:
                change(number, episode)
            made.setdefault(split, []).append(episode)
            number += 1
    return written_set(directory, bridge_features(), made, file_format, per_file=per_file)


def written_set(directory: Path, features: tfds.features.FeaturesDict, made: dict[str, list[dict[str, Any]]],
                file_format: Literal["array_record", "tfrecord"], *, per_file: int = 3) -> Path:
    """A data set of the records `made`, by split, in `directory`/bridge/0.1.0."""
    directory = directory / "bridge" / "0.1.0"
    directory.mkdir(parents=True)
    if file_format == "array_record":
        identity = tfds.core.DatasetIdentity(name="bridge", version=tfds.core.Version("0.1.0"),
                                             data_dir=str(directory), module_name="nowhere")
        info = tfds.core.DatasetInfo(builder=identity, features=features)
        writer = tfds.core.SequentialWriter(info, per_file, overwrite=True, file_format="array_record")
        writer.initialize_splits(list(made))
        writer.add_examples(made)
        writer.close_all()
        return directory
    splits = []
    for split, records in made.items():
        parts = [records[i : i + per_file] for i in range(0, len(records), per_file)]
        for index, part in enumerate(parts):
            name = f"bridge-{split}.tfrecord-{index:05d}-of-{len(parts):05d}"
            with_framing = RecordWriter(str(directory / name))
            for record in part:
                with_framing.write(features.serialize_example(record))
            with_framing.close()
        splits.append({"name": split, "shardLengths": [str(len(part)) for part in parts], "numBytes": "0",
                       "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"})
    features.save_config(str(directory))
    info = {"name": "bridge", "version": "0.1.0", "fileFormat": "tfrecord", "splits": splits}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory
