"""Builds typed values, as dataclasses, from plain ones, as nested mappings; errors name the field."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import config_dict


def field_comments(kind: type) -> dict[str, str]:
    """The comment after each field in the source of a dataclass, for help texts; "" without one."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.getsource(kind).splitlines():
        code, _, comment = line.partition("#")
        if declared := re.match(r"    (\w+): ", code):
            name = declared[1]
            found[name] = comment.strip()
        elif name and comment and not code.strip():  # a comment line that continues the one before
            found[name] += f" {comment.strip()}"
        else:
            name = ""
    return {field.name: found.get(field.name, "") for field in dataclasses.fields(kind)}


def by_name(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted name, tuples as lists."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for name, item in value.items():
            found |= by_name(item, f"{prefix}.{name}" if prefix else name)
        return found
    return {prefix: list(value) if isinstance(value, tuple) else value}


def read_list(text: str, *, texts: bool = False) -> list[Any]:
    """The values of a list on a command line: a,b or ("a", "b") or ["a", "b"]; [] for "".

    Args:
        text: the list.
        texts: its values are texts, even if they look like numbers.

    Raises:
        ValueError: an unclosed bracket or quote.
    """
    text = text.strip()
    if text[:1] in ("(", "[", '"', "'"):
        try:
            value = ast.literal_eval(text)  # reads JSON lists of texts and numbers as well
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"{text[:200]}: found no list, expected a,b or ('a', 'b') or [\"a\", \"b\"]") from error
        return list(value) if isinstance(value, (list, tuple)) else [value]
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    return list(pieces) if texts else [_number_or_text(piece) for piece in pieces]


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def build_field(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass, a Literal, a tuple, a mapping or a scalar.

    Raises:
        ValueError: names `where`, what was found and what was expected.
    """
    if isinstance(value, config_dict.FieldReference):
        value = value.get()
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: found {value!r}, expected a group of fields")
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                near = difflib.get_close_matches(str(name), hints, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(hints)}"
                raise ValueError(f"{where}.{name}: no such field; {hint}")
        for field in dataclasses.fields(kind):
            optional = (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
            if field.name not in value and not optional:
                raise ValueError(f"{where}.{field.name}: missing; expected {hints[field.name]}")
        return kind(**{name: build_field(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: found {value!r}, expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (tuple, list)):
            raise ValueError(f"{where}: found {value!r}, expected a tuple")
        return tuple(build_field(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: found {value!r}, expected a mapping")
        return {key: build_field(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return _json_form(value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        expected = kind.__name__ if isinstance(kind, (type, types.GenericAlias)) else str(kind)
        raise ValueError(f"{where}: found {value!r} of type {type(value).__name__}, expected {expected}")
    return value


def _json_form(value: Any, where: str) -> Any:
    """`value` as it is after a round trip through JSON (tuples become lists), so that a saved config is equal."""
    if isinstance(value, Mapping):
        return {str(key): _json_form(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_form(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError(f"{where}: found {value!r} of type {type(value).__name__}, expected a value that JSON can hold")
