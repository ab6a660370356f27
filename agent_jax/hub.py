"""The Hugging Face hub: finds weights, agents and data by ORG/NAME, in its cache or by download; uploads agents."""

from __future__ import annotations

import functools
import os
import pathlib
import re

from agent_jax.bundled import bundled_agent

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DESCRIPTION = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
               "merges.txt", "added_tokens.json")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
AGENT = ("agent.json", "vocabulary.json", "agent.safetensors", *(f"{part}/*.{ending}" for part in (
    "vision", "language") for ending in ("json", "safetensors")))  # of convert to-pytorch
BESIDE = ("README.md", "parity.json", "torch_agent.py")  # uploaded too, and not downloaded
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


def located_agent(path: str | os.PathLike[str], revision: str = "") -> str | os.PathLike[str]:
    """The path of an agent as it is, or the folder of the exported agent that is ORG/NAME on the hub.

    Args:
        path: any path that exists, or is in a bucket; the name of an agent that comes with the package; or ORG/NAME,
            unless ORG is a folder here. Files are downloaded unless the cache (HF_HOME) has them, and none of them is
            executed.
        revision: branch, tag or commit on the hub; by default main.

    Raises:
        FileNotFoundError: there is nothing, or the hub's model is not an exported agent.
        ValueError: a revision of a local path.
    """
    path = bundled_agent(path)
    place, name = pathlib.Path(path).expanduser(), str(path)
    if "://" in name or place.exists() or (place.name == "best" and place.parent.exists()):  # the best step of a run
        if revision:
            raise ValueError(f"revision={revision!r}: {path} is a path, which has no revisions; leave it out")
        return path
    # A first part that is a folder here, as in runs/babyai, is a path; the hub is not asked for it then.
    if not HUB_NAME.fullmatch(name) or place.parent.exists():
        raise FileNotFoundError(f"{path}: not found; expected a workdir, a folder of `convert to-pytorch`, or ORG/NAME "
                                "of one on the Hugging Face hub (ORG may not be a folder here)")
    from huggingface_hub import constants

    return _agent_snapshot(name, revision or constants.DEFAULT_REVISION, constants.HF_HUB_CACHE)


def check_may_push(name: str, *, public: bool) -> None:
    """Check what `push_agent` needs, before the work of an export.

    Raises:
        ValueError: a wrong name, no token, a hub that does not answer, or a repository of the other visibility.
    """
    if not HUB_NAME.fullmatch(name):
        raise ValueError(f"{name}: expected ORG/NAME, the repository on the hub to push to")
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not get_token():
        raise ValueError(f"{name}: found no token of the Hugging Face hub; run `hf auth login`, or set HF_TOKEN to a "
                         f"token that may write to {name.partition('/')[0]}")
    try:
        private = HfApi().model_info(name).private
    except RepositoryNotFoundError:
        return  # it will be created
    except _hub_errors() as error:
        raise _not_pushed(name, error) from error
    if private is public:
        found, flag = ("private", "leave out --public") if public else ("public", "pass --public")
        raise ValueError(f"{name}: the repository exists and is {found}; {flag}, push to another name, or change its "
                         "visibility in its settings on the hub")


def push_agent(folder: pathlib.Path, name: str, *, public: bool, message: str) -> str:
    """Upload an exported agent as one commit, after `check_may_push`; returns its address.

    Raises:
        ValueError: the hub refuses; names the reason.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=not public, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=[*AGENT, *BESIDE],
                                     commit_message=message).commit_url)
    except _hub_errors() as error:
        raise _not_pushed(name, error) from error


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
        raise FileNotFoundError(f"{name}: no such folder, and not available from the Hugging Face hub "
                                f"({_reason(error)}); give the path of a folder, or run `hf download "
                                f"--repo-type dataset {name}` on a machine with a network and copy its cache here"
                                ) from error


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
        reason = _reason(error)
    raise _unavailable(name, cache, reason)


def _agent_snapshot(name: str, revision: str, cache: str) -> pathlib.Path:
    """As `_snapshot`, of an exported agent."""
    from huggingface_hub import snapshot_download

    reason = ("it has no agent.json, which `convert to-pytorch` writes; CLIP and OPT are named in "
              "config.init.pretrained.vision and config.init.pretrained.language")
    try:
        folder = pathlib.Path(snapshot_download(name, revision=revision, cache_dir=cache, allow_patterns=list(AGENT)))
        if (folder / "agent.json").is_file():
            return folder
    except _hub_errors() as error:
        reason = _reason(error)
    raise _unavailable(name, cache, reason)


def _unavailable(name: str, cache: str, reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name}: not a local path, not complete in the cache at {cache}, and not available from the hub ({reason}). "
        f"Give the path of a folder; or run `hf download {name}` on a machine with a network and copy its cache here, "
        "or set HF_HOME to that cache; with a network here, unset HF_HUB_OFFLINE")


def _not_pushed(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name}: cannot push ({_reason(error)}). Nothing was uploaded; see that this machine reaches "
                      "the hub (HF_HUB_OFFLINE, HF_ENDPOINT, proxies) and run the same command again")


def _reason(error: Exception) -> str:
    """Why the hub's client failed, in one line, with what to do where that is known."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    token = "log in with `hf auth login`, or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, GatedRepoError):
        return f"its owners grant access on its page; ask there, then {token}"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no such repository, or it is private and this token may not read it; {token}"
    if status in (401, 403):
        return f"the hub refused the token ({status}); {token} to one with this right"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hub_errors() -> tuple[type[Exception], ...]:
    """The errors of the hub's client: OSError, ValueError, and those of its HTTP library."""
    from huggingface_hub.errors import HfHubHTTPError

    return (ValueError, *HfHubHTTPError.__bases__)
