"""The config of `python -m agent_jax.data prepare`: typed and checked, from a file and the command line.

    --config FILE.json | FILE.py (get_config())   then   --config.FIELD=VALUE ...   -> PrepareConfig

Overrides take precedence over the file; of two overrides of a field, the last one.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agent_jax.fields import build_field, read_list
from agent_jax.json_files import read_json_object


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How foreign data becomes a canonical store."""

    name: str = ""  # of the data set; "": from the name of the folder
    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)  # stored name -> the source's own key, column
    # or folder; {}: the source's default camera, stored as "rgb"
    image_size: int = 0  # pixels, square; 0: unchanged. Encoded images that have this size are copied byte for byte
    encoding: Literal["jpeg", "png"] = "jpeg"  # of images that have to be encoded
    action_spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # ActionSpec.to_dict(); {}: the source's
    state_spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # StateSpec.to_dict(); {}: the source's
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)  # key of a spec -> the source's column or
    # feature; a key that is not listed has the column of its name
    instruction: str = ""  # the source's column or feature; "": the source's default. Of rlds, several in order of
    # preference may be joined by commas
    instruction_text: str = ""  # one instruction for all, if the data have none
    rate_hz: float = 0.0  # wanted steps per second: the data's must be an exact multiple; 0: unchanged
    resample_actions: Literal["", "last", "sum", "first"] = ""  # how the actions of the steps between two kept ones are
    # joined: the last (targets), the sum (deltas) or the first; "": by the ActionSpec
    window: int = 4  # segments are cut at multiples of it, so that windows of that many steps lie in one segment
    segment_bytes: int = 4_000_000  # reading a window parses its whole record: long ones slow down every window
    validation: float = 0.05  # share of recordings in the split "test", if the data have no splits of their own
    out_of_bounds: float = 0.01  # largest share of a number's values beyond its bounds; they are clipped
    allow_root: tuple[str, ...] = ()  # other folders whose files the data may name (paths.py)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the source, which checks them

    def __post_init__(self) -> None:
        for name, least in (("image_size", 0), ("rate_hz", 0), ("window", 1), ("segment_bytes", 1)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"config.{name}={value} must be at least {least}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"config.validation={self.validation} is a share of the recordings, in [0, 1)")
        for name in ("name", *self.cameras):
            text = self.name if name == "name" else name
            if "/" in text or text.startswith("."):
                raise ValueError(f"config: found the name {text!r}, expected one without '/' that begins with no dot")


def prepare_config(given: Mapping[str, Any]) -> PrepareConfig:
    """Check a ConfigDict or a plain (JSON) mapping.

    Raises:
        ValueError: names the field, what was found and what was expected, for an unknown field (with the nearest known
            one), a wrong type, or a value out of range.
    """
    several = given.get("instruction")
    if isinstance(several, str) and several.lstrip().startswith("["):
        several = _value(several)
    if isinstance(several, (list, tuple)):
        given = {**given, "instruction": ",".join(map(str, several))}
    return build_field(PrepareConfig, given, "config")


def read_prepare_config(file: str, overrides: Sequence[str]) -> PrepareConfig:
    """The config of a file and of `--config.FIELD=VALUE` arguments.

    Args:
        file: FILE.json, or FILE.py with a function `get_config()` that returns a mapping; "": the defaults.
        overrides: command-line arguments, as `--config.image_size=224` or `--config.fields.action=world_vector`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: as `prepare_config`, or an argument is not an override.
    """
    return prepare_config(read_fields(file, overrides, PrepareConfig))


def read_fields(file: str, overrides: Sequence[str], kind: type, given: Mapping[str, Any] | None = None,
                ) -> dict[str, Any]:
    """The fields of the dataclass `kind` set by a file and overrides, unchecked; `given` ones have lowest precedence.

    Raises:
        FileNotFoundError, ValueError: as `read_prepare_config`.
    """
    found = {**(given or {}), **(_file_content(file) if file else {})}
    known: dict[str, Any] = {field.name: field for field in dataclasses.fields(kind)}
    for argument in overrides:
        name, equals, text = argument.lstrip("-").partition("=")
        field, _, key = name.removeprefix("config.").partition(".")
        if not argument.startswith("--config.") or not equals:
            raise ValueError(f"{argument}: unexpected argument; fields are given as --config.FIELD=VALUE")
        default = known[field].default if field in known else dataclasses.MISSING
        if key and default is not dataclasses.MISSING:
            raise ValueError(f"{argument}: config.{field} is not a group of fields")
        if key:
            found[field] = {**found.get(field, {}), key: text if field in ("cameras", "fields") else _value(text)}
        elif isinstance(default, tuple):
            found[field] = read_list(text, texts=True)
        elif field == "cameras" and not isinstance(_value(text), dict):
            found[field] = _by_own_names(read_list(text, texts=True), argument)
        else:
            found[field] = text if isinstance(default, str) else _value(text)
    return found


def _value(text: str) -> Any:
    """The value of JSON or of a Python True, False, list or dictionary, or else the text itself."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if text[:1] in ("(", "[", "{"):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(text)
    return text


def _by_own_names(cameras: list[Any], argument: str) -> dict[str, Any]:
    """The cameras by the last part of their names: "top" for observation.images.top."""
    found = {re.split(r"[./]", str(camera))[-1]: camera for camera in cameras}
    if len(found) < len(cameras):
        raise ValueError(f"{argument}: two cameras have the same last part; name each, as in --config.cameras.NAME="
                         f"{cameras[0]}")
    return found


def _file_content(file: str) -> Mapping[str, Any]:
    path, _, variant = file.partition(":")
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config={file}: no such file; expected FILE.json, FILE.py or FILE.py:VARIANT")
    if path.endswith(".json"):
        return read_json_object(Path(path))
    made = runpy.run_path(path).get("get_config")
    if made is None:
        raise ValueError(f"--config={file}: has no get_config(), expected one that returns a mapping")
    content = made(variant) if variant else made()
    content = content.to_dict() if hasattr(content, "to_dict") else content
    if not isinstance(content, Mapping):
        raise ValueError(f"--config={file}: found {type(content).__name__}, expected a mapping of fields")
    return content
