"""What a config chooses of a source, checked the same way by every source: options, columns, cameras."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.actions.declarations import closed
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.fields import build_field, read_list

_Kind = TypeVar("_Kind", ActionSpec, StateSpec)
_Options = TypeVar("_Options")


def checked_options(config: PrepareConfig, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`config.options` over a source's defaults.

    Raises:
        ValueError: an option that the source does not have, with the nearest one; or a value of another type.
    """
    for name, value in config.options.items():
        if name not in defaults:
            raise ValueError(f"config.options.{name}: no such option; {nearest(name, defaults)}")
        if type(value) is not type(defaults[name]):
            raise ValueError(f"config.options.{name}={value!r}: found {type(value).__name__}, expected "
                             f"{type(defaults[name]).__name__}")
    return {**defaults, **config.options}


def typed_options(kind: type[_Options], config: PrepareConfig) -> _Options:
    """`config.options` as a source's dataclass; a list may be a text, as the command line takes it: a,b.

    Raises:
        ValueError: an unknown option, or a value of another type; names it.
    """
    hints = get_type_hints(kind)
    given = {name: read_list(value, texts=str in get_args(hints[name]))
             if isinstance(value, str) and get_origin(hints.get(name)) is tuple else value
             for name, value in config.options.items()}
    return build_field(kind, given, "config.options")


def declared_spec(kind: type[_Kind], content: Mapping[str, Any]) -> _Kind | None:
    """The spec of a config, None for an empty one; bounds that are left to the data do not matter to a source.

    Raises:
        ValueError: it is none; names the field.
    """
    return kind.from_dict(closed(content, None, f"config.{kind.kind}_spec")) if content else None


def columns(config: PrepareConfig, keys: Collection[str], own: Mapping[str, str]) -> dict[str, str]:
    """The source's column of each key of the specs.

    Args:
        config: its `fields` decide.
        keys: of the ActionSpec and the StateSpec.
        own: what the source calls a key that `fields` does not list; other keys are their own names.

    Raises:
        ValueError: `fields` lists a key that no spec has.
    """
    check_fields(config, keys)
    return {key: config.fields.get(key, own.get(key, key)) for key in keys}


def check_fields(config: PrepareConfig, keys: Collection[str]) -> None:
    """Refuse `config.fields` of keys that no spec has.

    Raises:
        ValueError: names the key, and the nearest one.
    """
    for key in config.fields:
        if key not in keys:
            raise ValueError(f"config.fields.{key}: no key of the action or state spec; {nearest(key, keys)}")


def no_fields(config: PrepareConfig, instead: str) -> None:
    """Refuse `config.fields` for a source that has no use for them; `instead` says what to do.

    Raises:
        ValueError: names the first of them.
    """
    for key in config.fields:
        raise ValueError(f"config.fields.{key}: this source takes no fields; {instead}")


def chosen_cameras(config: PrepareConfig, there: Collection[str], default: str = "",
                   unusable: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The source's own camera by the name it is stored under.

    Args:
        config: its `cameras` decide.
        there: cameras of the data.
        default: the one that is taken as "rgb" where the config names none; "": the only one.
        unusable: why others cannot be taken.

    Raises:
        ValueError: a camera that the data do not have; or several, of which none is chosen.
    """
    if not config.cameras and not default and len(there) != 1:
        listed = ", ".join(sorted(there)) or "none that can be read"
        raise ValueError(f"config.cameras: the data have the cameras {listed}; say which are stored, and as what, as "
                         f"with --config.cameras.rgb={min(there, default='CAMERA')}")
    chosen = dict(config.cameras) or {"rgb": default or next(iter(there))}
    for name, camera in chosen.items():
        if camera in unusable:
            raise ValueError(f"config.cameras.{name}={camera!r}: {unusable[camera]}; there are {', '.join(there)}")
        if camera not in there:
            raise ValueError(f"config.cameras.{name}={camera!r}: no such camera; {nearest(camera, there)}")
    return chosen


def nearest(name: str, names: Collection[str]) -> str:
    """What could have been meant, in words."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(names)) or 'none'}"
