"""A Hugging Face model: its config.json, and its tensors by name, read one at a time from mapped files.

    DIR/config.json   and the first of these that exists:
        model.safetensors    model.safetensors.index.json -> model-0000i-of-0000n.safetensors
        pytorch_model.bin    pytorch_model.bin.index.json -> pytorch_model-0000i-of-0000n.bin
        open_clip_model.safetensors    open_clip_pytorch_model.bin    with open_clip_config.json (open_clip.py)
    or one such file, or a checkpoint NAME.pt, in a folder with the config; or ORG/NAME on the model hub (hub.py)

Headers are read at once, tensors on request. PyTorch is not needed, and nothing in the files is executed.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from agent_jax.checkpoints.exported.tensor_files import SafetensorsFile, TensorFile, first_lines, read_finite
from agent_jax.convert.huggingface import open_clip
from agent_jax.convert.huggingface.adapters import check_no_adapter, check_whole
from agent_jax.convert.huggingface.torch_file import TorchFile
from agent_jax.hub import located
from agent_jax.json_files import read_json_object

READERS: Mapping[str, Callable[[pathlib.Path], TensorFile]] = {".safetensors": SafetensorsFile, ".bin": TorchFile,
                                                                ".pt": TorchFile}
NAMES = ("model.safetensors", "pytorch_model.bin", *open_clip.WEIGHTS)  # in order of preference
INDEX = ".index.json"


class WeightsFolder:
    """Tensors of one model by name; use `open_folder`."""

    def __init__(self, path: pathlib.Path, config: Mapping[str, Any], files: Mapping[str, TensorFile], source: str):
        """`files` maps the name of a tensor to the opened file with it."""
        self.path = path  # the folder, or the single file
        self.config = config
        self.source = source  # which files are read, and which are not
        self._files = dict(files)
        self.shapes: dict[str, tuple[int, ...]] = {name: file.shapes[name] for name, file in self._files.items()}
        self.dtypes: dict[str, str] = {name: file.dtypes[name] for name, file in self._files.items()}

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A floating tensor, or some of its rows, in f32 on the host; values are not checked."""
        return self._files[name].read(name, rows)

    def read_finite(self, name: str, rows: slice | None = None) -> np.ndarray:
        """As `read`; errors as in `tensor_files.read_finite`."""
        return read_finite(self._files[name], name, rows)


@contextlib.contextmanager
def open_folder(path: str | pathlib.Path) -> Iterator[WeightsFolder]:
    """Open a folder written by `save_pretrained`, one file of it, or a model of the hub.

    Raises:
        FileNotFoundError: names the file that is missing.
        ValueError: a file is damaged, or the index and its files disagree.
    """
    place = located(path)
    config = read_config(place)
    with contextlib.ExitStack() as stack:

        def opened(path: pathlib.Path) -> TensorFile:
            file = stack.enter_context(contextlib.closing(READERS[path.suffix](path)))
            check_whole(path, file.shapes)
            return open_clip.OpenClipFile(file) if open_clip.is_open_clip(file.shapes) else file

        if place.is_file():
            if place.suffix not in READERS:
                raise ValueError(f"{place}: expected a folder, or a file that ends in {' or '.join(READERS)}")
            file = opened(place)
            yield WeightsFolder(place, config, dict.fromkeys(file.shapes, file), place.name)
            return
        names = [name for stem in NAMES for name in (stem, stem + INDEX) if (place / name).is_file()]
        if not names:
            found = ", ".join(sorted(item.name for item in place.iterdir())[:10])
            raise FileNotFoundError(f"{place}: found {found}; expected {' or '.join(NAMES)}, or shards of one with "
                                    f"their {INDEX.removeprefix('.')}")
        if names[0].endswith(INDEX):
            files = _shards(place, place / names[0], opened)
        else:
            file = opened(place / names[0])
            files = dict.fromkeys(file.shapes, file)
        unread = f" ({', '.join(names[1:])} not read)" if names[1:] else ""
        yield WeightsFolder(place, config, files, names[0] + unread)


def config_path(path: str | pathlib.Path) -> pathlib.Path:
    """The path of config.json (or open_clip_config.json) for a folder, a single file or a model of the hub.

    Raises:
        FileNotFoundError: there is no such folder, file or model.
    """
    place = located(path)
    folder = place if place.is_dir() else place.parent
    other = folder / open_clip.CONFIG
    return other if other.is_file() and not (folder / "config.json").is_file() else folder / "config.json"


def read_config(path: str | pathlib.Path) -> dict[str, Any]:
    """The content of config.json, or of open_clip_config.json in the same form.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object, or the folder holds an adapter in place of a model.
    """
    file = config_path(path)
    check_no_adapter(file.parent, located(path))
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected the config.json of a Hugging Face model in the "
                                "folder of its weights. For a checkpoint of open_clip or OpenAI, put the config.json "
                                "of the same architecture there, such as openai/clip-vit-base-patch16, with the "
                                "hidden_act of its training: quick_gelu for OpenAI's weights, gelu for most others")
    return open_clip.vision_fields(file) if file.name == open_clip.CONFIG else read_json_object(file)


def _shards(place: pathlib.Path, index: pathlib.Path,
            opened: Callable[[pathlib.Path], TensorFile]) -> dict[str, TensorFile]:
    """Tensor name -> open shard, after a check of the index against the shards."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: expected an object `weight_map` from tensor to file")
    suffix = pathlib.PurePath(index.name.removesuffix(INDEX)).suffix
    names = sorted(set(weight_map.values()))
    for name in names:
        path = pathlib.PurePath(name)
        if path.name != name or path.suffix != suffix or not (place / name).is_file():
            raise FileNotFoundError(f"{index} names the shard {name!r}, one of {len(names)}, which is not there; copy "
                                    "or download it again")
    shards = {name: opened(place / name) for name in names}
    held = {(tensor, name) for name, file in shards.items() for tensor in file.shapes}
    listed = set(weight_map.items())
    if held != listed:
        lines = [f"listed for {name}, not in it: {tensor}" for tensor, name in sorted(listed - held)]
        lines += [f"in {name}, not listed for it: {tensor}" for tensor, name in sorted(held - listed)]
        raise ValueError("\n  ".join([f"{index} and its shards disagree; copy or download them again:",
                                      *first_lines(lines)]))
    return {tensor: shards[name] for tensor, name in weight_map.items()}
