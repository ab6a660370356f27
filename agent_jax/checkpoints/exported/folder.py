"""The content of an exported folder: meta data as in a checkpoint, and parameters. Nothing in it is executed."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints.exported.tensor_files import SafetensorsFile, mismatches, read_finite
from agent_jax.checkpoints.exported.tensors import shapes, to_params
from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import ModelConfig, from_config_dict
from agent_jax.data.pipeline.domains import Domain
from agent_jax.json_files import read_json_object
from agent_jax.models.agent import Params

FORMAT = 1  # of agent.json
DESCRIPTION = "agent.json"


def read_folder(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The content of the checkpoint: (arrays by path, meta data, step).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: tensors are missing, unknown, of another shape or not finite, or files disagree.
    """
    meta, step = read_meta(folder)
    return flat(read_params(folder, from_config_dict(meta["config"]).model)), meta, step


def read_meta(folder: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The meta data of the checkpoint, as in checkpoints/meta.py, and its step; no tensor is read.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: agent.json or vocabulary.json is damaged, or they disagree.
    """
    content, step = _description(folder / DESCRIPTION)
    config = from_config_dict(content["config"])
    stored = folder / "vocabulary.json"
    try:
        vocabulary = Vocabulary.from_json(read_json_object(stored))
    except ValueError as error:
        raise ValueError(f"{stored}: {error}") from error
    if config.model.language.vocabulary_size != vocabulary.size:
        raise ValueError(f"{folder}: agent.json has model.language.vocabulary_size="
                         f"{config.model.language.vocabulary_size}, but vocabulary.json has {vocabulary.size} ids; "
                         "take both from one export")
    for name, entry in content["domains"].items():
        _check_domain(f"{folder / DESCRIPTION}: domains.{name}", entry, vocabulary)
    return {"config": content["config"], "vocabulary": vocabulary.to_json(), "domains": content["domains"],
            "data_state": None}, step


def _description(file: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The content of an agent.json, and its step."""
    content = read_json_object(file)
    if content.get("format") != FORMAT:
        raise ValueError(f"{file}: format {content.get('format')!r}, expected {FORMAT}")
    for name in ("config", "domains", "source"):
        if not isinstance(content.get(name), dict):
            raise ValueError(f"{file}: {name}: found {content.get(name)!r}, expected an object")
    step = content["source"].get("step")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"{file}: source.step: found {step!r}, expected a whole number of at least 0")
    return content, step


def _check_domain(where: str, entry: Any, vocabulary: Vocabulary) -> None:
    """Raise ValueError for a domain that the policy could not use."""
    try:
        Domain.from_meta(entry, vocabulary)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not as to-pytorch writes it ({type(error).__name__}: {error}); take an undamaged "
                         "agent.json") from error


def read_params(folder: pathlib.Path, model: ModelConfig) -> Params:
    """The parameters of a folder as NumPy arrays.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: tensors are missing, unknown, of another shape or not finite.
    """
    expected = shapes(model)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(contextlib.closing(SafetensorsFile(folder / name))) for name in expected}
        lines = [f"  {name}: {line}" for name, file in files.items()
                 for line in mismatches(file.shapes, file.dtypes, expected[name])]
        if lines:
            raise ValueError("\n".join([f"{folder}: its tensors are not those of agent.json:", *lines]))
        return to_params(lambda file, name: read_finite(files[file], name), model)
