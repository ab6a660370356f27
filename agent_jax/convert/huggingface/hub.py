"""Finds weights: a local path, or ORG/NAME on the Hugging Face hub, from its cache or by download."""

from __future__ import annotations

import functools
import pathlib
import re

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DESCRIPTION = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
               "merges.txt", "added_tokens.json")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
AGENT = ("agent.json", "vocabulary.json", "agent.safetensors", "vision/*", "language/*")  # of convert to-pytorch
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


def located(path: str | pathlib.Path) -> pathlib.Path:
    """The local folder or file that `path` means.

    Args:
        path: a folder or file; or, if it does not exist, ORG/NAME of a model on the hub. If the cache (HF_HOME) lacks
            the model and HF_HUB_OFFLINE is not set, config, tokenizer and weights are downloaded, safetensors if the
            model has them.

    Raises:
        FileNotFoundError: there is nothing.
    """
    place = pathlib.Path(path).expanduser()
    if place.exists():
        return place
    if not HUB_NAME.fullmatch(str(path)):
        raise FileNotFoundError(f"{place}: no such folder or file; expected a Hugging Face folder, one of its weight "
                                "files, or ORG/NAME of a model on the hub")
    from huggingface_hub import constants  # slow to import, and not needed for local weights

    return _snapshot(str(path), constants.HF_HUB_CACHE)


def located_agent(path: str) -> pathlib.Path:
    """The local folder of an exported agent (`convert to-pytorch`) that is ORG/NAME on the hub, as `located`.

    Raises:
        FileNotFoundError: it is not there, or is not an exported agent.
    """
    from huggingface_hub import constants

    return _agent_snapshot(path, constants.HF_HUB_CACHE)


def located_data(path: pathlib.Path) -> pathlib.Path:
    """`path`, or, if it does not exist and is ORG/NAME, the folder of that data set of the hub, downloaded if need be.

    Raises:
        FileNotFoundError: the hub or its cache lacks the data set.
    """
    name = str(path)
    if path.exists() or not HUB_NAME.fullmatch(name):
        return path
    from huggingface_hub import snapshot_download

    try:
        return pathlib.Path(snapshot_download(name, repo_type="dataset"))
    except _hub_errors() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"{name}: no such folder, and not available from the Hugging Face hub ({reason}); give "
                                f"the path of a folder, or run `hf download --repo-type dataset {name}` on a machine "
                                "with a network and copy its cache here") from error


def cached_folders(name: str, file: str) -> list[pathlib.Path]:
    """The folders of the hub's cache with `file` of the models `name` (ORG/NAME, with `*` as wildcard); no network."""
    if not HUB_NAME.fullmatch(name.replace("*", "x")):
        return []
    from huggingface_hub import constants

    pattern = f"models--{name.replace('/', '--')}/snapshots/*/{file}"
    return sorted(found.parent for found in pathlib.Path(constants.HF_HUB_CACHE).glob(pattern))


@functools.cache  # a conversion asks for a folder several times
def _snapshot(name: str, cache: str) -> pathlib.Path:
    """The folder in `cache` of the model `name`, downloaded if it is not there."""
    from huggingface_hub import snapshot_download

    reason = "the model has neither safetensors nor pytorch_model.bin, or no config.json"
    try:
        for weights in (SAFETENSORS, PICKLED):
            folder = pathlib.Path(snapshot_download(name, cache_dir=cache, allow_patterns=[*DESCRIPTION, *weights]))
            if (folder / "config.json").is_file() and any((folder / file).is_file() for file in weights):
                return folder
    except _hub_errors() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise _unavailable(name, cache, reason)


@functools.cache
def _agent_snapshot(name: str, cache: str) -> pathlib.Path:
    """As `_snapshot`, of an exported agent."""
    from huggingface_hub import snapshot_download

    reason = ("it has no agent.json, which `convert to-pytorch` writes; CLIP and OPT are named in "
              "config.init.pretrained.vision and config.init.pretrained.language")
    try:
        folder = pathlib.Path(snapshot_download(name, cache_dir=cache, allow_patterns=list(AGENT)))
        if (folder / "agent.json").is_file():
            return folder
    except _hub_errors() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise _unavailable(name, cache, reason)


def _unavailable(name: str, cache: str, reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name}: not a local path, not complete in the cache at {cache}, and not available from the hub ({reason}). "
        f"Give the path of a folder; or run `hf download {name}` on a machine with a network and copy its cache here, "
        "or set HF_HOME to that cache; with a network here, unset HF_HUB_OFFLINE")


def _hub_errors() -> tuple[type[Exception], ...]:
    """The errors of the hub's client: OSError, ValueError, and those of its HTTP library."""
    from huggingface_hub.errors import HfHubHTTPError

    return (ValueError, *HfHubHTTPError.__bases__)
