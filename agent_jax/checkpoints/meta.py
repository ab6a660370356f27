"""The meta dict of a checkpoint: everything but the arrays, one checked JSON file in each step.

`save` of checkpoint.py adds format_version, step, metrics, fingerprint and checksum; the rest is the caller's:

    format_version  FORMAT_VERSION of the writer
    step            the step
    metrics         {name: number} of the validation that belongs to the step, or null
    fingerprint     {path: {"shape", "dtype", "sum"}} of every array of the state (fingerprint.py); `locate` says where
                    each is stored
    checksum        SHA-256 of all the rest
    config          the Config, as plain JSON
    vocabulary      Vocabulary.to_json()
    domains         {domain: Domain.to_meta()}: specs, window, layout, cameras, image size
    data_state      position in the data
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from agent_jax.checkpoints.access import failed_read, is_directory
from agent_jax.checkpoints.fingerprint import fingerprint, flat

# 1: a domain had one camera, `image`. 2: all arrays were one item, the averaged parameters at the path `ema` in it.
FORMAT_VERSION = 3
RESERVED = ("format_version", "step", "metrics", "fingerprint", "checksum")

STATE, ACTING = "state", "acting"  # items of a step: what training needs besides, and the parameters to act with
AVERAGED, PARAMS = "averaged", "params"  # parts of the state that hold parameters

_SHOWN = 8  # paths an error lists of each kind


class DamagedCheckpointError(RuntimeError):
    """A checkpoint whose files are missing, cut off or altered."""


def sealed(meta: Mapping[str, Any], step: int, metrics: Mapping[str, float] | None, state: Any) -> dict[str, Any]:
    """The complete meta dict of a step, as JSON would give it back.

    Raises:
        ValueError: if meta has a reserved key.
        TypeError: if meta is not JSON.
    """
    if taken := [key for key in RESERVED if key in meta]:
        raise ValueError(f"meta holds the reserved keys {', '.join(taken)}, which a save adds itself: rename them")
    sums = fingerprint(state)
    arrays = {path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sum": sums[path]}
              for path, leaf in flat(state).items()}
    numbers = None if metrics is None else {name: float(value) for name, value in metrics.items()}
    content = {**meta, "format_version": FORMAT_VERSION, "step": step, "metrics": numbers, "fingerprint": arrays}
    content = json.loads(json.dumps(content))  # tuples become lists now, not after the checksum
    return {**content, "checksum": _checksum(content)}


def read(step_directory: epath.Path) -> dict[str, Any]:
    """The meta dict of one step, checked.

    Raises:
        FileNotFoundError: if there is no such step.
        DamagedCheckpointError: if the file is missing or was altered.
        OSError: if it could not be read, which says nothing about it.
        ValueError: if a newer version of this package wrote it.
    """
    if not is_directory(step_directory):
        raise FileNotFoundError(f"no checkpoint {step_directory}")
    path = step_directory / "meta" / "data.json"
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedCheckpointError(f"checkpoint {step_directory} is damaged: it has no {path}") from error
    except OSError as error:
        raise failed_read(step_directory, error.errno, path) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DamagedCheckpointError(f"checkpoint {step_directory} is damaged: {path} is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("checksum") != _checksum(content):
        raise DamagedCheckpointError(f"checkpoint {step_directory} is damaged: {path} does not match its checksum")
    if content["format_version"] > FORMAT_VERSION:
        raise ValueError(f"checkpoint {step_directory} has format_version {content['format_version']}, expected at "
                         f"most {FORMAT_VERSION}: read it with the newer agent_jax that wrote it")
    return _upgraded(content)


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """The content as today's format has it, whichever version wrote it; `format_version` stays the writer's."""
    if content["format_version"] < 2:
        entries = content.get("config", {}).get("data", {}).get("domains", {})
        for domain in (*entries.values(), *content.get("domains", {}).values()):
            if "image" in domain:
                domain["cameras"] = [domain.pop("image")]
    if content["format_version"] < 3 and (average := content.get("ema")):
        count = f"{average.removesuffix('average')}seen"  # of updates, which is the step
        content["fingerprint"] = {path.replace(average, AVERAGED, 1) if path.startswith(f"{average}/") else path: entry
                                  for path, entry in content["fingerprint"].items() if path != count}
    return content


def locate(meta: Mapping[str, Any], path: str) -> tuple[str, str]:
    """(item, path in the item) of an array of the state.

    The parameters to act with are an item of their own: the averaged ones where there are some, else the last ones.
    """
    part, _, name = path.partition("/")
    if meta["format_version"] < 3:
        return STATE, f"{meta['ema']}/{name}" if part == AVERAGED else path
    acts = part == AVERAGED or (part == PARAMS and f"{AVERAGED}/{name}" not in meta["fingerprint"])
    return (ACTING, name) if acts else (STATE, path)


def acting_path(meta: Mapping[str, Any], name: str) -> str:
    """Path in the state of a parameter to act with."""
    averaged = f"{AVERAGED}/{name}"
    return averaged if averaged in meta["fingerprint"] else f"{PARAMS}/{name}"


def is_averaged(meta: Mapping[str, Any]) -> bool:
    """Whether the run kept an average of its parameters."""
    return any(path.startswith(f"{AVERAGED}/") for path in meta.get("fingerprint", ()))  # an exported folder has none


def check_structure(found: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Any],
                    step_directory: epath.Path) -> None:
    """Refuse a state or model that differs from what the checkpoint holds.

    Args:
        found: path -> {"shape", "dtype"} in the checkpoint.
        expected: path -> anything with shape and dtype.
        step_directory: for the message.

    Raises:
        ValueError: lists the paths, with both shapes, and what to do.
    """
    held = {path: f"{entry['dtype']}{entry['shape']}" for path, entry in found.items()}
    wanted = {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in expected.items()}
    lines = {
        "only in the checkpoint": [f"{path} {held[path]}" for path in sorted(held.keys() - wanted.keys())],
        "only in this run": [f"{path} {wanted[path]}" for path in sorted(wanted.keys() - held.keys())],
        "different": [f"{path}: checkpoint {held[path]}, this run {wanted[path]}"
                      for path in sorted(held.keys() & wanted.keys()) if held[path] != wanted[path]],
    }
    if not any(lines.values()):
        return
    message = [f"checkpoint {step_directory} is of another model or optimizer:"]
    for title, items in lines.items():
        message += [f"  {title}: {item}" for item in items[:_SHOWN]]
        if len(items) > _SHOWN:
            message.append(f"  {title}: and {len(items) - _SHOWN} more")
    message.append("Use the config it was trained with, or another workdir for this one.")
    raise ValueError("\n".join(message))


def _checksum(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
