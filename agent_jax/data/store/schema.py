"""The fields of a record, flat and by path, as its TFDS features declare them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

STEPS = "steps"  # RLDS: the field that holds the time steps of a record


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a record, or of each of its steps."""

    path: str  # "episode_id", "steps/observation/rgb"
    kind: Literal["image", "text", "array"]
    per_step: bool
    shape: tuple[int, ...]  # of one value or decoded image; () for texts and scalars; -1: varies
    dtype: np.dtype[Any]
    encoding: str = ""  # of an image: "png" or "jpeg"; "": unknown

    @property
    def is_image(self) -> bool:
        """Whether its values are images of 8 bits a channel: encoded, or uint8 tensors (height, width, 3)."""
        if self.dtype != np.uint8:
            return False
        return self.kind == "image" or (len(self.shape) == 3 and self.shape[2] == 3 and min(self.shape) > 0)


def features_fields(features: Any) -> dict[str, Field]:
    """The flat fields of TFDS features, by path."""
    fields: dict[str, Field] = {}

    def walk(feature: Any, path: str, per_step: bool) -> None:
        # Scalar and Text are subclasses of Tensor.
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
            dtype: np.dtype[Any] = np.dtype(leaf.get_serialized_info().np_dtype)  # bytes for an encoded array
            fields[path] = Field(path, "array" if dtype.kind in "biuf" else "text", per_step, shape, dtype)

    walk(features, "", False)
    return fields


def length_field(fields: Mapping[str, Field], where: str) -> Field:
    """The field whose number of values gives the number of steps of a record.

    Raises:
        ValueError: the data have no step field; names `where` they are.
    """
    steps = [field for field in fields.values() if field.per_step
             and (field.kind != "array" or all(size > 0 for size in field.shape))]
    if not steps:
        raise ValueError(f"{where}: no {STEPS!r} field that is a Dataset of time steps (RLDS), with a value of fixed "
                         f"shape in each; it has {quoted_list(fields)}")
    # A scalar is the fastest to count.
    return min(steps, key=lambda field: (field.kind != "array", -1 in field.shape, field.shape))


def quoted_list(names: Iterable[object]) -> str:
    """Names for a message, quoted and joined by commas."""
    return ", ".join(repr(str(name)) for name in names) or "none"
