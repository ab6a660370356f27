"""One record of a data set: parsed, checked against the schema, its images still encoded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.store.schema import Field

# The tf.train.Example in TFRecord and array_record files; protobuf makes the class at import.
Example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
REPAIR = "Copy the file again, or remake the data set without this record"


class RecordError(BadDataError):
    """A record cannot be read or does not match features.json; names file, split and record."""


class Episode:
    """One record, an episode or a segment of one: parsed, with its images still encoded."""

    def __init__(self, serialized: bytes, where: str, fields: Mapping[str, Field], length_field: Field):
        """Parse a tf.train.Example; `where` names file, split and record in messages.

        Raises:
            RecordError: it is not a tf.train.Example, or lacks the `length_field`.
        """
        try:
            self._features = Example.FromString(serialized).features.feature
        except DecodeError as error:
            raise RecordError(f"{where}: {len(serialized):,} bytes that are not a tf.train.Example ({error}). "
                              f"{REPAIR}") from error
        self.where, self._fields = where, fields
        each = math.prod(length_field.shape) if length_field.kind == "array" else 1
        self.steps: int = len(self._list(length_field.path)) // each

    def values(self, path: str, start: int, stop: int) -> np.ndarray | list[bytes]:
        """The values of a step field in steps [start, stop): an array (steps, *shape), or a list of bytes.

        Raises:
            RecordError: the number of values does not match the number of steps.
        """
        field, values = self._fields[path], self._list(path)
        size = math.prod(field.shape) if field.kind == "array" else 1
        if len(values) != size * self.steps and (field.kind != "text" or not field.shape):  # a text may be a tensor
            raise RecordError(f"{self.where}: {path!r} holds {len(values)} values, expected {size} for each of "
                              f"{self.steps} steps. {REPAIR}")
        if field.kind != "array":
            return list(values[start:stop])
        # NumPy reads the buffer of a repeated field; a slice of the field would be a Python list, which is slow.
        chosen = np.asarray(values)[start * size : stop * size]
        return chosen.astype(field.dtype).reshape(-1, *field.shape)

    def value(self, path: str) -> np.ndarray | bytes:
        """The value of a field of the record itself.

        Raises:
            RecordError: the number of values does not match the field's shape.
        """
        field, values = self._fields[path], self._list(path)
        expected = math.prod(field.shape) if field.kind == "array" else 1
        if len(values) != expected if field.kind == "array" and -1 not in field.shape else not values:
            raise RecordError(f"{self.where}: {path!r} holds {len(values)} values, expected {expected}. {REPAIR}")
        return values[0] if field.kind != "array" else np.asarray(values).astype(field.dtype).reshape(field.shape)

    def texts(self, paths: str) -> list[str]:
        """The instruction at each step, from text or 0-padded UTF-8 codes of each step or of the whole record.

        Args:
            paths: of a field, or of several in order of preference, joined by commas; the first one with text counts.

        Raises:
            RecordError: the number of texts does not match the steps or the record, or a text is not UTF-8.
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
            raise RecordError(f"{self.where}: {path!r} cannot be read as texts ({error}). {REPAIR}") from error
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


def split_paths(paths: str) -> list[str]:
    """The fields of an instruction, in order of preference, as `a,b`."""
    return [path.strip() for path in paths.split(",")]


def _decoded_codes(codes_NL: np.ndarray) -> list[str]:
    """Texts of 0-padded UTF-8 codes; a run of equal texts is decoded once."""
    changed = np.flatnonzero(np.any(codes_NL[1:] != codes_NL[:-1], axis=1)) + 1
    texts = []
    for first, last in itertools.pairwise([0, *changed.tolist(), len(codes_NL)]):
        if first < last:
            codes = codes_NL[first]
            texts += [codes[codes != 0].astype(np.uint8).tobytes().decode("utf-8")] * (last - first)
    return texts
