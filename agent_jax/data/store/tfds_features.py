"""Reads features.json of TFDS, the schema of the records, without importing anything that the file names.

    {"pythonClassName": "tensorflow_datasets....Image", "image": {"shape": ...}}     -> tfds.features.Image(shape)
    {"type": "tensorflow_datasets....Image", "content": {"shape": ...}}              before TFDS 4.5

TFDS itself imports the module of each class name, so opening a data set can run its author's code. Here a table maps
known class names to features. Videos, audio and translations, which this package does not use, are read as the plain
features that they are stored as.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from agent_jax.json_files import read_json_object

FEATURES_FILE = "features.json"
_LARGEST = 2**31 - 1  # of a dimension
_DTYPES = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


def read_features(directory: Path) -> tfds.features.FeaturesDict:
    """The features of the data set in a directory.

    Raises:
        OSError: there is no features.json, or it cannot be read.
        ValueError: it names an unknown class or is damaged; names file, feature and class.
    """
    file = directory / FEATURES_FILE
    found = _feature(read_json_object(file), str(file))
    if not isinstance(found, tfds.features.FeaturesDict):
        raise ValueError(f"{file}: found a {type(found).__name__}, expected a FeaturesDict of the fields of a record")
    return found


def _feature(value: Any, place: str) -> Any:
    """The feature that a JSON value describes; `place` is its file and path, for messages."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: found {value!r:.100}, expected an object that describes a feature")
    name = str(value.get("pythonClassName") or value.get("python_class_name") or value.get("type"))
    make = _CLASSES.get(name)
    if make is None:
        known = ", ".join(sorted({known.rpartition(".")[2] for known in _CLASSES}))
        raise ValueError(f"{place}: the feature class {name!r} is unknown, and no code is imported for it; "
                         f"expected one of {known} of tensorflow_datasets. Replace the name by the class that the "
                         "records are stored as (a Tensor, a FeaturesDict, ...), or rewrite the data set with it")
    try:
        return make(_content(value), place)
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError, AssertionError) as error:
        if str(error).startswith(place):
            raise
        raise ValueError(f"{place}: cannot be read as {name.rpartition('.')[2]} ({error!r})") from error


def _content(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the class, wherever this version of TFDS writes them."""
    if "type" in value:
        content = value["content"]
        content = json.loads(content) if isinstance(content, str) else content
        if not value.get("proto_cls") and _is_nest(content):
            content = {"features": content}
        return content
    others = [item for key, item in value.items() if key not in _OF_ALL and isinstance(item, Mapping)]
    content = others[0] if others else {}
    return json.loads(content["json"]) if set(content) == {"json"} else content


_OF_ALL = ("pythonClassName", "python_class_name", "description", "valueRange", "value_range")


def _is_nest(content: Any) -> bool:
    """Whether these are the features of a FeaturesDict by name, as older versions write them."""
    return bool(content) and all(isinstance(item, Mapping) and "type" in item for item in content.values()) and not (
        set(content) <= {"feature", "length"})


def _nest(content: Mapping[str, Any], place: str) -> Any:
    features = content.get("features") or {}
    inside = f"{place}: " if place.endswith(FEATURES_FILE) else f"{place}/"
    return tfds.features.FeaturesDict({key: _feature(item, f"{inside}{key}") for key, item in features.items()})


def _of_sequence(kind: Callable[[Any], Any]) -> Callable[[Mapping[str, Any], str], Any]:
    return lambda content, place: kind(_feature(content["feature"], place))


def _tensor(content: Mapping[str, Any], _place: str) -> Any:
    encoding = content.get("encoding") or "none"
    return tfds.features.Tensor(shape=_shape(content), dtype=_dtype(content), encoding=str(encoding).lower())


def _image(content: Mapping[str, Any], _place: str) -> Any:
    encoding = content.get("encodingFormat") or content.get("encoding_format") or None
    return tfds.features.Image(shape=_shape(content), dtype=_dtype(content, "uint8"), encoding_format=encoding)


def _video(content: Mapping[str, Any], _place: str) -> Any:
    return tfds.features.Sequence(tfds.features.Image(shape=_shape(content)[1:]))


def _texts(content: Mapping[str, Any], _place: str) -> Any:
    return tfds.features.FeaturesDict({str(name): tfds.features.Text() for name in content.get("languages") or ()})


def _shape(content: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Sizes; None for one that varies."""
    shape = content.get("shape") or ()
    sizes = [None if size is None else int(size)
             for size in (shape.get("dimensions") or () if isinstance(shape, Mapping) else shape)]
    for size in sizes:
        if size is not None and not -1 <= size <= _LARGEST:
            raise ValueError(f"shape {sizes}, expected sizes of at most {_LARGEST}, or -1 where one varies")
    return tuple(None if size == -1 else size for size in sizes)


def _dtype(content: Mapping[str, Any], default: str = "") -> Any:
    """The NumPy dtype; object for texts, as in TFDS."""
    name = str(content.get("dtype") or default)
    if name in ("string", "object", "str"):
        return np.dtype(object)
    if not _DTYPES.fullmatch(name):
        raise ValueError(f"dtype {name!r}, expected bool, string, or an integer or float of up to 64 bits")
    return np.dtype(name)


_MODULE = "tensorflow_datasets.core.features."
_CLASSES: Mapping[str, Callable[[Mapping[str, Any], str], Any]] = {
    _MODULE + name: make for name, make in {
        "features_dict.FeaturesDict": _nest,
        "dataset_feature.Dataset": _of_sequence(tfds.features.Dataset),
        "sequence_feature.Sequence": _of_sequence(tfds.features.Sequence),
        "tensor_feature.Tensor": _tensor,
        "feature.Tensor": _tensor,  # its name before TFDS 4.4
        "scalar.Scalar": lambda content, _place: tfds.features.Scalar(_dtype(content)),
        "text_feature.Text": lambda *_: tfds.features.Text(),
        "image_feature.Image": _image,
        "labeled_image.LabeledImage": _image,
        "class_label_feature.ClassLabel": lambda *_: tfds.features.ClassLabel(),  # its names are in another file
        "bounding_boxes.BBoxFeature": lambda *_: tfds.features.BBoxFeature(),
        "video_feature.Video": _video,
        "audio_feature.Audio": _tensor,
        "translation_feature.Translation": _texts,
        "translation_feature.TranslationVariableLanguages": lambda _content, _place: tfds.features.Sequence(
            {"language": tfds.features.Text(), "translation": tfds.features.Text()}),
    }.items()
}
