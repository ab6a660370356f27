"""The one reader of a JSON file that must hold an object: configs, indexes and tokenizers of Hugging Face."""

from __future__ import annotations

import json
import pathlib
from typing import Any


def read_json_object(path: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or not an object; names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: not a JSON file that can be read: nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a {type(content).__name__}, expected a JSON object")
    return content
