"""Checks of the options, fields and cameras that a config selects from a source."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.actions.declarations import closed
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.fields import build_field, read_list

_Spec = TypeVar("_Spec", bound=ActionSpec | StateSpec)
_Options = TypeVar("_Options")


def typed_options(kind: type[_Options], config: PrepareConfig) -> _Options:
    """`config.options` as the dataclass `kind`; a list may be written as on the command line: a,b.

    Raises:
        ValueError: an unknown option, or a value of another type; names it.
    """
    hints = get_type_hints(kind)
    given = {name: read_list(value, texts=str in get_args(hints[name]))
             if isinstance(value, str) and get_origin(hints.get(name)) is tuple else value
             for name, value in config.options.items()}
    return build_field(kind, given, "config.options")


def declared_spec(kind: type[_Spec], content: Mapping[str, Any]) -> _Spec | None:
    """The spec of a config, None for an empty one; open bounds get placeholders.

    Raises:
        ValueError: the spec is invalid; names the field.
    """
    return kind.from_dict(closed(content, None, f"config.{kind.kind}_spec")) if content else None


def check_fields(config: PrepareConfig, keys: Collection[str]) -> None:
    """Refuse `config.fields` of keys that no spec has.

    Raises:
        ValueError: names the key, and the nearest one.
    """
    for key in config.fields:
        if key not in keys:
            raise ValueError(f"config.fields.{key}: no key of the action or state spec; {nearest(key, keys)}")


def no_fields(config: PrepareConfig, instead: str) -> None:
    """Refuse `config.fields` for a source that does not use them; `instead` names the alternative.

    Raises:
        ValueError: names the first of them.
    """
    for key in config.fields:
        raise ValueError(f"config.fields.{key}: this source takes no fields; {instead}")


def chosen_cameras(config: PrepareConfig, there: Collection[str], default: str = "",
                   unusable: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The source's camera for each stored name.

    Args:
        config: its `cameras` decide.
        there: cameras of the data.
        default: camera stored as "rgb" if the config names none; "": the only one.
        unusable: reasons why other cameras cannot be used.

    Raises:
        ValueError: the data lack a chosen camera, or have several and the config chooses none.
    """
    if not config.cameras and not default and len(there) != 1:
        listed = ", ".join(sorted(there)) or "none that can be read"
        raise ValueError(f"config.cameras: the data have the cameras {listed}; choose the ones to store, as in "
                         f"--config.cameras.rgb={min(there, default='CAMERA')}")
    chosen = dict(config.cameras) or {"rgb": default or next(iter(there))}
    for name, camera in chosen.items():
        if camera in unusable:
            raise ValueError(f"config.cameras.{name}={camera!r}: {unusable[camera]}; there are {', '.join(there)}")
        if camera not in there:
            raise ValueError(f"config.cameras.{name}={camera!r}: no such camera; {nearest(camera, there)}")
    return chosen


def nearest(name: str, names: Collection[str]) -> str:
    """A hint for an unknown name: the closest known one, or all of them."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(names)) or 'none'}"
