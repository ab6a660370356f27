"""Reads and writes JSON files: configs and tokenizers of Hugging Face, figures of commands."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from typing import Any


def parse_json(text: str | bytes, where: object) -> Any:
    """The value of JSON in UTF-8.

    Raises:
        ValueError: it is not JSON, or nested too deeply; begins with `where`.
    """
    try:
        return json.loads(text)
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{where}: is not JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"{where}: is JSON that is nested too deeply") from None


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or not an object; names the file.
    """
    content = parse_json(path.read_bytes(), path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a JSON file as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file in one rename, so that no process reads half of it, and make its directory.

    An existing path that is not a plain file, as /dev/stdout, is written in place.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_json_path(text: str, flag: str = "") -> pathlib.Path:
    """Check the path of a command's --json before its work starts.

    Args:
        text: the path.
        flag: prefix of the message.

    Raises:
        ValueError: no file can be written there; gives the reason.
    """
    path = pathlib.Path(text)
    if path.is_dir():
        raise ValueError(f"{flag}{text}: is a directory, expected the path of a file")
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"{flag}{text}: {nearest} is not a directory; pass another path")
    if not os.access(path if path.exists() else nearest, os.W_OK):
        raise ValueError(f"{flag}{text}: {path if path.exists() else nearest} cannot be written to; pass another path")
    return path


def json_path(text: str) -> pathlib.Path:
    """`check_json_path` as an argparse type."""
    try:
        return check_json_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
