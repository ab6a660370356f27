"""Where weights lie: a path as it is, or ORG/NAME of the Hugging Face hub, from its cache or by a download."""

from __future__ import annotations

import functools
import pathlib
import re

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DESCRIPTION = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
               "merges.txt", "added_tokens.json")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


def located(path: str | pathlib.Path) -> pathlib.Path:
    """The local folder or file that `path` means.

    Args:
        path: of a folder or file; or, where there is nothing, ORG/NAME of a model on the hub. Of that only config,
            tokenizer and weights are downloaded, as safetensors where the model has them, unless HF_HUB_OFFLINE is
            set or they are in the cache (HF_HOME).

    Raises:
        FileNotFoundError: nothing there; for a name of the hub, what was tried and what to do.
    """
    place = pathlib.Path(path).expanduser()
    if place.exists():
        return place
    if not HUB_NAME.fullmatch(str(path)):
        raise FileNotFoundError(f"{place}: no such folder or file; expected a Hugging Face folder, one of its weight "
                                "files, or ORG/NAME of a model on the hub")
    from huggingface_hub import constants  # not paid for where the weights lie on disk

    return _snapshot(str(path), constants.HF_HUB_CACHE)


def cached_folders(name: str, file: str) -> list[pathlib.Path]:
    """The folders of the hub's cache that hold `file` of the models `name`, where `*` stands for anything; no network.

    Args:
        name: ORG/NAME; anything else has no folder.
        file: a file of the model.
    """
    if not HUB_NAME.fullmatch(name.replace("*", "x")):
        return []
    from huggingface_hub import constants

    pattern = f"models--{name.replace('/', '--')}/snapshots/*/{file}"
    return sorted(found.parent for found in pathlib.Path(constants.HF_HUB_CACHE).glob(pattern))


@functools.cache  # a folder is asked for several times in a conversion, and the hub answers once
def _snapshot(name: str, cache: str) -> pathlib.Path:
    """The folder in `cache` that holds the model `name`, downloaded if it must be."""
    from huggingface_hub import snapshot_download

    reason = "the model has neither safetensors nor pytorch_model.bin, or no config.json"
    try:
        for weights in (SAFETENSORS, PICKLED):
            folder = pathlib.Path(snapshot_download(name, cache_dir=cache, allow_patterns=[*DESCRIPTION, *weights]))
            if (folder / "config.json").is_file() and any((folder / file).is_file() for file in weights):
                return folder
    except _hub_errors() as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise FileNotFoundError(
        f"{name}: not a local path, not whole in the cache at {cache}, and not to be had from the hub ({reason}). Give "
        f"the path of a folder; or fetch it where there is a network (hf download {name}) and copy the cache here, or "
        "set HF_HOME to where it is; or, where there is one, see that HF_HUB_OFFLINE is not set")


def _hub_errors() -> tuple[type[Exception], ...]:
    """All that the hub's client raises: OSError, ValueError of a bad name, and whatever its HTTP library has."""
    from huggingface_hub.errors import HfHubHTTPError

    return (ValueError, *HfHubHTTPError.__bases__)
