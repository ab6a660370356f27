"""The adapters of a run as one small file, and the checkpoint that this file and the run's base make.

    RUN, BASE -> FILE     the parameters in which the run differs from its base: adapters, and what was trained besides
    BASE, FILE -> OUT     a checkpoint with merged parameters

FILE is a safetensors file. Its metadata hold config, vocabulary and domains of the run, and a fingerprint of every
parameter that the base contributes, so that another base is refused.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.fingerprint import flat, nested
from agent_jax.checkpoints.meta import ACTING, PARAMS, acting_path
from agent_jax.config import LoraConfig, from_config_dict
from agent_jax.convert.from_huggingface import checked_out, write_step
from agent_jax.models.agent import abstract_params
from agent_jax.models.lora import LORA, merged, parameter_shapes

FORMAT = "agent_jax adapters 1"
_SHOWN = 3  # paths that an error lists


def save_adapters(run: str | pathlib.Path, file: str | pathlib.Path, base: str = "") -> str:
    """Write the parameters in which a run's newest undamaged step, or the one named, differs from its base.

    Args:
        run: a workdir, its checkpoints directory, or one step in it.
        file: the file to write.
        base: the checkpoint the run was begun from; "": the run's config.init.checkpoint.

    Returns:
        A line to print.

    Raises:
        FileExistsError: `file` exists.
        FileNotFoundError, DamagedCheckpointError: there is no undamaged checkpoint.
        ValueError: no base is known; the run has no adapters, or nothing in common with the base.
    """
    file = checked_out(file)
    directory, named = checkpoint.locate(run)

    def read(step: int) -> tuple[Any, dict[str, Any]]:
        meta = checkpoint.read_meta(directory, step)
        return checkpoint.restore_parameters(directory, parameter_shapes(from_config_dict(meta["config"])), step=step,
                                             subtree=ACTING)

    params, meta = read(named) if named is not None else checkpoint.newest_undamaged(directory, read)[0]
    if LORA not in params:
        raise ValueError(f"{run} has no adapters: its config.lora.patterns is empty; take the checkpoint as a whole")
    base = base or meta["config"]["init"]["checkpoint"]
    if not base:
        raise ValueError(f"{run} was begun from no checkpoint; pass --base, one with the parameters that it froze")
    base_directory, base_step = checkpoint.locate(base)
    base_meta = checkpoint.read_meta(base_directory, base_step)
    leaves = flat(params)
    shared = {subtree: _shared(meta, base_meta, list(leaves), subtree) for subtree in (PARAMS, ACTING)}
    subtree = max(shared, key=lambda name: len(shared[name]))  # a run may begin from the averages of its base
    if not shared[subtree]:
        raise ValueError(f"{run} has no parameter in common with {base}; pass the one it was begun from as --base")
    stored = {path: np.asarray(leaf) for path, leaf in leaves.items() if path not in shared[subtree]}
    description = {"format": FORMAT, "step": meta["step"], "config": meta["config"], "vocabulary": meta["vocabulary"],
                   "domains": meta["domains"], "base": str(base), "base_subtree": subtree,
                   "base_fingerprint": shared[subtree]}
    save_file(stored, file, {"agent_jax": json.dumps(description)})
    adapters = sum(leaf.size for path, leaf in stored.items() if path.startswith(f"{LORA}/"))
    rest = sum(leaf.size for leaf in stored.values()) - adapters
    size = file.stat().st_size / 2**20
    return (f"{adapters:,} values of adapters and {rest:,} of other trained parameters, {size:.1f} MiB; the other "
            f"{len(shared[subtree])} arrays are those of {base_directory}")


def apply_adapters(base: str | pathlib.Path, file: str | pathlib.Path, out: str | pathlib.Path) -> str:
    """Write the checkpoint of a base with a file of `save_adapters`, merged; its config has no adapters.

    Returns:
        A line to print.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError, DamagedCheckpointError: there is no such file or undamaged checkpoint.
        ValueError: not such a file, or the base is another one than its run was begun from.
    """
    out, file = checked_out(out), pathlib.Path(file).expanduser()
    description, stored = _read(file)
    directory, named = checkpoint.locate(base)
    meta = checkpoint.read_meta(directory, named)
    subtree, expected = description["base_subtree"], description["base_fingerprint"]
    found = {path: entry["sum"] for path in expected if (entry := _entry(meta, path, subtree)) is not None}
    if wrong := [path for path in expected if found.get(path) != expected[path]]:
        raise ValueError(f"{file} was made for the base {description['base']}, and {directory} differs from it in "
                         f"{', '.join(wrong[:_SHOWN])}{' and others' if len(wrong) > _SHOWN else ''}; pass that base")
    shapes = abstract_params(from_config_dict(meta["config"]).model)
    params, _ = checkpoint.restore_parameters(directory, shapes, step=meta["step"], subtree=subtree)
    leaves = {path: leaf for path, leaf in flat(params).items() if path in expected} | stored
    config = dataclasses.replace(from_config_dict(description["config"]), lora=LoraConfig())
    together = merged(nested(leaves), description["config"]["lora"]["scale"])
    written = {"config": dataclasses.asdict(config), "vocabulary": description["vocabulary"],
               "domains": description["domains"], "data_state": None}
    write_step(out, flat(together), written, step=description["step"])
    return f"{directory} with {file} -> {out}/{description['step']}"


def _read(file: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the tensors of a file."""
    try:
        with safe_open(file, framework="numpy") as content:
            description = json.loads((content.metadata() or {}).get("agent_jax", "{}"))
            tensors = {path: content.get_tensor(path) for path in content.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not a file of `convert adapters`: {error}") from error
    if description.get("format") != FORMAT:
        raise ValueError(f"{file}: found format {description.get('format')!r}, expected {FORMAT!r}")
    return description, tensors


def _shared(meta: Mapping[str, Any], base: Mapping[str, Any], paths: list[str], subtree: str) -> dict[str, int]:
    """Fingerprints of the parameters that a run has as its base has them, by path."""
    shared = {}
    for path in paths:
        if f"{PARAMS}/{LORA}/{path}/a" in base["fingerprint"]:
            continue  # the base's adapter was merged into it
        mine, theirs = _entry(meta, path, ACTING), _entry(base, path, subtree)
        if mine is not None and mine == theirs:
            shared[path] = mine["sum"]
    return shared


def _entry(meta: Mapping[str, Any], path: str, subtree: str) -> dict[str, Any] | None:
    """Shape, dtype and fingerprint of a parameter; None if the step has none of that path."""
    return meta["fingerprint"].get(acting_path(meta, path) if subtree == ACTING else f"{PARAMS}/{path}")
