"""A Hugging Face folder, opened: its config.json and its tensors by name, read one at a time from mapped files.

    config.json    model.safetensors    or    model.safetensors.index.json -> model-0000i-of-0000n.safetensors

Only headers are read until a tensor is asked for. PyTorch is not needed, and nothing in the files is executed.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

FLOATS = ("F32", "F16", "BF16", "F64")  # what becomes a parameter; position_ids are I64


class SafetensorsFolder:
    """Tensors of one folder by name; use `open_folder`."""

    def __init__(self, directory: pathlib.Path, config: Mapping[str, Any], files: Mapping[str, Any]):
        """Of an opened folder; `files` maps the name of a tensor to the open file that holds it."""
        self.directory = directory
        self.config = config
        self._files = dict(files)
        slices = {name: file.get_slice(name) for name, file in self._files.items()}
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self.dtypes: dict[str, str] = {name: part.get_dtype() for name, part in slices.items()}

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A tensor, or some of its rows, in f32 on the host."""
        file = self._files[name]
        array = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
        return np.asarray(array).astype(np.float32, copy=False)


@contextlib.contextmanager
def open_folder(directory: str | pathlib.Path) -> Iterator[SafetensorsFolder]:
    """Open a folder written by `save_pretrained`, or downloaded from a model hub.

    Raises:
        FileNotFoundError: names the file that is missing, and how to make it.
        ValueError: a file is damaged, or the index and its files contradict each other.
    """
    place = pathlib.Path(directory).expanduser()
    config = read_config(place)
    single, index = place / "model.safetensors", place / "model.safetensors.index.json"
    with contextlib.ExitStack() as stack:
        if single.is_file():
            file = stack.enter_context(_opened(single))
            files = dict.fromkeys(file.keys(), file)
        elif index.is_file():
            files = _shards(place, index, stack)
        else:
            found = ", ".join(sorted(item.name for item in place.iterdir())[:10]) or "nothing"
            raise FileNotFoundError(
                f"{place}: found {found}; expected model.safetensors, or model.safetensors.index.json and its shards. "
                "From pytorch_model.bin, transformers' from_pretrained(...).save_pretrained(...) makes them")
        yield SafetensorsFolder(place, config, files)


def read_config(directory: str | pathlib.Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object.
    """
    path = pathlib.Path(directory).expanduser() / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a Hugging Face folder with config.json, safetensors")
    return _json_object(path)


def _json_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a {type(content).__name__}, expected a JSON object")
    return content


def _opened(path: pathlib.Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or no safetensors file ({error}); copy or download it again") from error


def _shards(place: pathlib.Path, index: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Tensor name -> open shard, the index held against what the shards really contain."""
    weight_map = _json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: expected an object `weight_map` from tensor to file")
    opened: dict[str, Any] = {}
    for name in sorted(set(weight_map.values())):
        if pathlib.PurePath(name).name != name or not (place / name).is_file():
            raise FileNotFoundError(f"{index} names the shard {name!r}, which is not there; copy or download it again")
        opened[name] = stack.enter_context(_opened(place / name))
    held = {(tensor, name) for name, file in opened.items() for tensor in file.keys()}  # noqa: SIM118 - no mapping
    listed = set(weight_map.items())
    if held != listed:
        lines = [f"listed for {name}, not in it: {tensor}" for tensor, name in sorted(listed - held)]
        lines += [f"in {name}, not listed for it: {tensor}" for tensor, name in sorted(held - listed)]
        raise ValueError(f"{index} and its shards contradict each other; copy or download them again:\n  "
                         + "\n  ".join(lines))
    return {tensor: opened[name] for tensor, name in weight_map.items()}
