"""`meta/info.json` of a LeRobot data set: features, splits and path templates.

    "observation.images.top": {"dtype": "video", "shape": [3, 480, 640], "names": ["rgb", "height", "width"]}
                              -> CameraFeature("video", height=480, width=640)

A feature that cannot be used (a depth map, an odd shape) is refused only if the config chooses it.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
import string
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from agent_jax.data.bad_data import BadDataError, bad_data
from agent_jax.json_files import read_json_object

_AXES = {"channel": ("c", "ch", "rgb", "color", "colors", "colour", "colours"), "height": ("h", "rows"),
         "width": ("w", "columns")}
_NUMBERS = re.compile(r"u?int\d+|float\d+|bool")
_WIDTH = re.compile(r"0?(\d{0,2})d?")  # of a field in a template; at most two digits, since the file is untrusted
_MAX_PATH = 500  # characters of a template, and of a path made from one
LARGEST_INDEX = 10**9  # of an episode, a file, a chunk
_SHORT = reprlib.Repr()  # shortens values of a file in messages
_SHORT.maxstring = _SHORT.maxother = 120


@dataclasses.dataclass(frozen=True)
class CameraFeature:
    """A camera declared by info.json."""

    kind: Literal["video", "image"]
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of each step that info.json declares."""

    cameras: Mapping[str, CameraFeature]
    numbers: Mapping[str, tuple[int, ...]]  # shape of each numeric feature
    texts: frozenset[str]  # features that hold a text
    indices: frozenset[str]  # features that hold one whole number
    names: Mapping[str, tuple[str, ...]]  # of a vector's components, if they have names
    unusable: Mapping[str, str]  # reasons why features cannot be used


@dataclasses.dataclass(frozen=True)
class LeRobotInfo:
    """The content of info.json; errors name the file."""

    file: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> LeRobotInfo:
        """Read a file.

        Raises:
            BadDataError: the content is not a JSON object.
        """
        with bad_data():
            return cls(file, read_json_object(file))

    def major_version(self) -> int:
        """The version of the format: 2 or 3.

        Raises:
            ValueError: another version.
        """
        version = str(self.content.get("codebase_version"))
        match = re.fullmatch(r"v(\d)\.\d+", version)
        major = int(match[1]) if match else 0
        if major not in (2, 3):
            older = "; convert it by the scripts of the lerobot repository" if major == 1 else ""
            raise ValueError(f"{self.file}: found codebase_version {version[:40]!r}, expected v2.0, v2.1 or v3.x"
                             f"{older}")
        return major

    def number(self, name: str) -> float:
        """A number above 0."""
        value = self.content.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
            raise BadDataError(f"{self.file}: {name} is {_SHORT.repr(value)}, expected a number above 0")
        return float(value)

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number, `default` if there is none."""
        value = self.content.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_INDEX:
            raise BadDataError(f"{self.file}: {name} is {_SHORT.repr(value)}, expected a whole number")
        return value

    def splits(self) -> dict[str, tuple[int, int]]:
        """First episode of each split, and the episode after its last."""
        splits = self.content.get("splits") or {}
        if not isinstance(splits, dict):
            raise BadDataError(f"{self.file}: splits is {_SHORT.repr(splits)}, expected an object, as "
                               "{'train': '0:50'}")
        found = {}
        for name, text in splits.items():
            match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", str(text))
            if not match:
                raise BadDataError(f"{self.file}: splits.{name} is {_SHORT.repr(text)}, expected a range of episodes "
                                   "as '0:50'")
            found[name] = (int(match[1]), int(match[2]))
        return found

    def features(self) -> Features:
        """The features by type; unusable ones are listed with the reason, and refused only if chosen."""
        features = self.content.get("features")
        if not isinstance(features, dict):
            raise BadDataError(f"{self.file}: features is {_SHORT.repr(features)}, expected an object of objects")
        cameras, numbers, texts, indices, names, unusable = {}, {}, set(), set(), {}, {}
        for key, feature in features.items():
            try:
                shape, kind = _shape(feature), feature.get("dtype")
                if kind in ("video", "image"):
                    cameras[key] = _camera(feature, shape)
                elif kind == "string":
                    texts.add(key)
                elif isinstance(kind, str) and _NUMBERS.fullmatch(kind):
                    numbers[key] = shape or (1,)
                    if "int" in kind and numbers[key] == (1,):
                        indices.add(key)
                    names[key] = _component_names(feature.get("names"), numbers[key])
            except _UnusableError as error:
                unusable[key] = f"{self.file}: features.{key} {error}"
        return Features(cameras, numbers, frozenset(texts), frozenset(indices), names, unusable)

    def path(self, root: Path, name: str, **values: int | str) -> Path:
        """The file for a path template of info.json.

        Args:
            root: of the data set.
            name: of the template.
            values: of the fields. Attributes, conversions and long widths are refused: the template is untrusted.
        """
        template = self.content.get(name)
        try:
            text = _filled(template, values)
        except ValueError as error:
            fields = ", ".join(f"{{{field}:06d}}" if isinstance(value, int) else f"{{{field}}}"
                               for field, value in values.items())
            raise BadDataError(f"{self.file}: {name} is {_SHORT.repr(template)}: {error}; expected a path with "
                               f"{', '.join(values)} in braces, as {fields}") from error
        relative = PurePosixPath(text)
        if relative.is_absolute() or ".." in relative.parts or "\0" in text:
            raise BadDataError(f"{self.file}: {name} is {_SHORT.repr(template)}, expected a path within the data set")
        return root / relative


class _UnusableError(Exception):
    """The reason why a feature cannot be used; its message follows the feature's name."""


def _filled(template: Any, values: Mapping[str, int | str]) -> str:
    """Fill the plain fields of a template; ValueError describes anything else in it."""
    if not isinstance(template, str) or len(template) > _MAX_PATH:
        raise ValueError("not a text" if not isinstance(template, str) else f"{len(template)} characters")
    pieces: list[str] = []
    for text, field, width, conversion in string.Formatter().parse(template):
        pieces.append(text)
        if field is None:
            continue
        if field not in values:
            raise ValueError(f"found {{{field}}}")
        number = isinstance(values[field], int)
        if conversion or not (_WIDTH.fullmatch(width or "") if number else not width):
            raise ValueError(f"found {field} with the format {conversion or width!r}")
        pieces.append(format(values[field], width or ""))
    filled = "".join(pieces)
    if len(filled) > _MAX_PATH:
        raise ValueError(f"makes a path of {len(filled)} characters")
    return filled


def _shape(feature: Any) -> tuple[int, ...]:
    if not isinstance(feature, dict):
        raise _UnusableError(f"is {_SHORT.repr(feature)}, expected an object with dtype and shape")
    shape = feature.get("shape")
    if shape is None:
        return ()
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size < LARGEST_INDEX for size in shape):
        raise _UnusableError(f"has shape {_SHORT.repr(shape)}, expected a list of sizes, as [7]")
    return tuple(shape)


def _camera(feature: Mapping[str, Any], shape: tuple[int, ...]) -> CameraFeature:
    """The camera of a feature, from the names of its axes, or else from the axis of size 3."""
    details: dict[str, Any] = {}
    for name in ("video_info", "info"):
        given = feature.get(name)
        details |= given if isinstance(given, dict) else {}
    if details.get("video.is_depth_map") or details.get("is_depth_map"):
        raise _UnusableError("is a depth map, expected a camera of three colours")
    if len(shape) != 3 or 3 not in (shape[0], shape[-1]):
        raise _UnusableError(f"has shape {list(shape)}, expected height, width and 3 channels")
    given = feature.get("names")
    axes = [_axis(name) for name in given] if isinstance(given, (list, dict)) and len(given) == 3 else []
    channel = axes.index("channel") if axes.count("channel") == 1 else 2 if shape[2] == 3 else 0
    if shape[channel] != 3:  # some writers leave names that contradict the shape
        axes, channel = [], 2 - channel
    first, second = (axis for axis in range(3) if axis != channel)
    swapped = bool(axes) and axes[first] == "width" and axes[second] == "height"
    height, width = (shape[second], shape[first]) if swapped else (shape[first], shape[second])
    return CameraFeature(feature["dtype"], height, width)


def _axis(name: Any) -> str:
    """The axis of that name: channel, height or width; "" if unknown."""
    plain = str(name).lower()
    return next((axis for axis, short in _AXES.items() if plain in short or plain.rstrip("s") == axis), "")


def _component_names(given: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of a vector's components from a list, an object with one list ("motors"), or an object name -> index."""
    if isinstance(given, dict):
        lists = [item for item in given.values() if isinstance(item, list)]
        numbered = all(type(item) is int for item in given.values())
        given = lists[0] if len(lists) == 1 else sorted(given, key=given.__getitem__) if numbered else ()
    names = tuple(given) if isinstance(given, (list, tuple)) else ()
    if len(shape) != 1 or len(names) != shape[0] or not all(isinstance(name, str) and name for name in names):
        return ()
    return names if len(set(names)) == len(names) else ()
