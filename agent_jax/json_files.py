"""JSON files, read and written in one way: configs, indexes and tokenizers of Hugging Face; figures of commands."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from typing import Any


def parse_json(text: str | bytes, where: object) -> Any:
    """The value that JSON in UTF-8 holds.

    Raises:
        ValueError: it is not JSON, or nested too deeply to be read; begins with `where`.
    """
    try:
        return json.loads(text)
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{where}: is not JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"{where}: is not JSON that can be read: nested too deeply") from None


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or not an object; names the file.
    """
    content = parse_json(path.read_bytes(), path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a JSON file in one rename, so that nobody finds half of it; its directory is made.

    What is there and no plain file, as /dev/stdout, is written as it is.
    """
    text = json.dumps(content, indent=2) + "\n"
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
    """The path that a command's --json names, looked at before the work whose figures it is to get.

    Args:
        text: the path.
        flag: what stands before it in an error.

    Raises:
        ValueError: no file can be written there; says why.
    """
    path = pathlib.Path(text)
    if path.is_dir():
        raise ValueError(f"{flag}{text}: is a directory, expected the path of a file")
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"{flag}{text}: {nearest} is not a directory; pass a path in one")
    if not os.access(path if path.exists() else nearest, os.W_OK):
        raise ValueError(f"{flag}{text}: {path if path.exists() else nearest} cannot be written to; pass another path")
    return path


def json_path(text: str) -> pathlib.Path:
    """`check_json_path` as the type of an argument of argparse."""
    try:
        return check_json_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
