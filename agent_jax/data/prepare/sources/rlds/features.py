"""Finds the features of an RLDS data set: by path, by short name, or by the names that such data sets commonly use."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import check_fields
from agent_jax.data.store.episode import split_paths
from agent_jax.data.store.schema import Field

Numbers = dict[str, tuple[tuple[int, ...], np.dtype[Any], tuple[str, ...]]]  # shape, dtype and fields, by key

_PREFIXES = ("", "steps/", "steps/observation/", "steps/action/")
# Names in Open-X and Language-Table, the most common first.
_INSTRUCTIONS = ("steps/language_instruction", "steps/observation/natural_language_instruction",
                 "steps/observation/instruction", "steps/observation/language_instruction", "instruction",
                 "language_instruction", "steps/instruction", "episode_metadata/language_instruction")
_CAMERAS = ("rgb", "image", "image_0", "image_primary", "agentview_rgb", "front_rgb", "rgb_static")


class FeatureNames:
    """Finds the features that the config names; `directory` is used in messages."""

    def __init__(self, directory: str, fields: Mapping[str, Field], config: PrepareConfig):
        self._directory, self._fields, self._config = directory, fields, config

    def instruction(self) -> str:
        """Path of the instruction, or several in order of preference (`Episode.texts`); "": config.instruction_text.

        Raises:
            ValueError: no such feature, or none with a common name.
        """
        if self._config.instruction_text:
            return ""
        if self._config.instruction:
            return ",".join(self._find(name, "config.instruction") for name in split_paths(self._config.instruction))
        found = next((path for path in _INSTRUCTIONS if path in self._fields), "")
        if not found:
            raise ValueError(f"{self._directory}: no feature with a common name of instructions; set "
                             f"config.instruction to one of {self._names('text')}, or, in prepare, "
                             "config.instruction_text to one text for all")
        numbered = itertools.takewhile(self._fields.__contains__, (f"{found}_{n}" for n in itertools.count(2)))
        return ",".join([found, *numbered])  # DROID has three

    def cameras(self) -> dict[str, str]:
        """Paths of the images, by stored name.

        Raises:
            ValueError: no such image, or several of which the config chooses none.
        """
        if self._config.cameras:
            found = {name: self._find(key, f"config.cameras.{name}") for name, key in self._config.cameras.items()}
            for name, path in found.items():
                field = self._fields[path]
                if not (field.is_image and field.per_step):
                    raise ValueError(f"config.cameras.{name}: {path!r} is not an image; expected one of "
                                     f"{', '.join(self._images()) or 'none there'}: 8 bits a channel, an Image or a "
                                     "Tensor of (height, width, 3) without `encoding`; found "
                                     f"{field.kind} {list(field.shape)} of {field.dtype}")
            return found
        images = self._images()
        common = [path for name in _CAMERAS for path in images if path == f"steps/observation/{name}"]
        if not common and len(images) != 1:
            raise ValueError(f"{self._directory}: {len(images)} images a step and none of a common name; choose by "
                             "config.cameras, as in --config.cameras.rgb=NAME, from "
                             f"{', '.join(images) or 'none there'}")
        return {"rgb": (common or images)[0]}

    def numbers(self, spec: ActionSpec | None, state: StateSpec | None, *,
                required: bool = True) -> tuple[Numbers, Numbers]:
        """The features of each key of the specs; without an ActionSpec, those of config.fields or `action`.

        `required`: refuse data without actions.

        Raises:
            ValueError: no such feature, or one of another shape; config.fields of a key that the specs lack.
        """
        if spec:
            check_fields(self._config, {**spec.fields, **(state.fields if state else {})})
        states = {key: self._number(key, *given) for key, given in (state.fields if state else {}).items()}
        if spec:
            return {key: self._number(key, *given) for key, given in spec.fields.items()}, states
        keys = [key for key in self._config.fields if key not in states] or ["action"]
        if keys == ["action"] and not self._config.fields and "steps/action" not in self._fields:
            if not required:
                return {}, states
            raise ValueError(f"{self._directory}: config.action_spec is empty and there is no feature 'steps/action'; "
                             f"give an ActionSpec, and in config.fields the features of its keys, from: "
                             f"{self._names('array')}")
        return {key: self._number(key, None, None) for key in keys}, states

    def _number(self, key: str, shape: tuple[int, ...] | None,
                dtype: Any) -> tuple[tuple[int, ...], np.dtype[Any], tuple[str, ...]]:
        where = f"config.fields.{key}"
        paths = tuple(self._find(name.strip(), where) for name in self._config.fields.get(key, key).split(","))
        fields = [self._fields[path] for path in paths]
        for field in fields:
            if field.kind != "array" or not field.per_step or -1 in field.shape:
                raise ValueError(f"{where}: {field.path!r} does not hold numbers of a fixed shape for each step; "
                                 f"expected one of {self._names('array')}")
        size = sum(int(np.prod(field.shape)) for field in fields)
        found = fields[0].shape if len(fields) == 1 else (size,)
        if shape is not None and found != shape:
            if int(np.prod(shape)) != size or len(fields) == 1:
                raise ValueError(f"{where}: the spec expects shape {shape} for {key!r}, found {found} in "
                                 f"{', '.join(paths)}")
            found = shape
        return found, np.dtype(dtype or fields[0].dtype), paths

    def _find(self, name: str, where: str) -> str:
        for prefix in _PREFIXES:
            if prefix + name in self._fields:
                return prefix + name
        near = difflib.get_close_matches(name, self._fields, n=3, cutoff=0.3)
        raise ValueError(f"{where}: {self._directory} has no feature {name!r}; nearest: "
                         f"{', '.join(near) or ', '.join(self._fields)}")

    def _images(self) -> list[str]:
        """Paths of the images of steps; tensors only where there are no encoded ones."""
        images = [path for path, field in self._fields.items() if field.is_image and field.per_step]
        return [path for path in images if self._fields[path].kind == "image"] or images

    def _names(self, kind: str) -> str:
        return ", ".join(path for path, field in self._fields.items() if field.kind == kind) or "none there"
