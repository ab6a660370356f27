"""Converts the agent's parameters to the tensors of an exported folder and back: equal values, PyTorch's names.

vision/...    ->  vision/model.safetensors     CLIP's names
language/...  ->  language/model.safetensors   OPT's names; the token table without the rows of its padding
the rest      ->  agent.safetensors            the names of torch_agent.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from agent_jax.checkpoints.exported.mapping import (
    CLIP,
    CLIP_POSITIONS,
    LINEAR,
    MAE,
    OPT,
    OPT_TOKENS,
    TEMPORAL,
    Rule,
    inverse,
    transform,
)
from agent_jax.checkpoints.fingerprint import flat, nested
from agent_jax.config import ModelConfig
from agent_jax.models.agent import Params, abstract_params
from agent_jax.models.vision import sincos_positions

VISION_FILE, LANGUAGE_FILE, AGENT_FILE = "vision/model.safetensors", "language/model.safetensors", "agent.safetensors"
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Section:
    """Leaves of one part whose tensors are in one file with one prefix."""

    part: str  # of the parameters
    file: str
    prefix: str  # of the names in the file
    rules: tuple[Rule, ...]
    depth: int = 1


def sections(model: ModelConfig) -> list[Section]:
    """The sections of all leaves of an agent."""
    vision = model.vision
    clip = tuple(rule for rule in CLIP if rule is not CLIP_POSITIONS or vision.positions == "clip")
    found = [Section("vision", VISION_FILE, "vision_model.", clip, vision.depth),
             Section("language", LANGUAGE_FILE, "model.decoder.", OPT, model.language.depth),
             Section("connector", AGENT_FILE, "connector.", LINEAR),
             Section("mae", AGENT_FILE, "mae.", MAE, model.mae.depth)]
    if vision.temporal_attention:
        found.append(Section("vision", AGENT_FILE, "vision.", TEMPORAL, vision.depth))
    if model.classes:
        found.append(Section("classifier", AGENT_FILE, "classifier.", LINEAR))
    return found


def to_tensors(params: Params, model: ModelConfig) -> Iterator[tuple[Section, Tensors]]:
    """The tensors of each section, by the name in its file.

    Args:
        params: of the agent; NumPy or JAX arrays.
        model: its sizes, with `vocabulary_size`.
    """
    leaves, used = flat(params), set()
    for section in sections(model):
        tensors: Tensors = {}
        for rule in section.rules:
            path = f"{section.part}/{rule.target}"
            used.add(path)
            array = np.asarray(leaves[path])
            if rule is OPT_TOKENS:
                array = array[: model.language.vocabulary_size]
            for layer, one in enumerate(array if rule.stacked else array[None]):
                names = (section.prefix + source.format(layer) for source in rule.sources)
                tensors |= zip(names, inverse(rule.form, one), strict=True)
        if section.file == VISION_FILE and model.vision.positions == "sincos":
            tensors[section.prefix + CLIP_POSITIONS.sources[0]] = _fixed_positions(model)
        yield section, tensors
    assert used == leaves.keys(), sorted(leaves.keys() ^ used)


def to_params(read: Callable[[str, str], np.ndarray], model: ModelConfig) -> Params:
    """The parameters, from tensors: the inverse of `to_tensors`; padding of the token table becomes zeros.

    Args:
        read: (file, name) -> tensor; raises for one that is missing or of another shape.
        model: sizes.

    Raises:
        ValueError: the file's positions differ from the fixed sin-cos table.
    """
    leaves: dict[str, np.ndarray] = {}
    for section in sections(model):
        for rule in section.rules:
            layers = []
            for layer in range(section.depth if rule.stacked else 1):
                names = (section.prefix + source.format(layer) for source in rule.sources)
                layers.append(transform(rule.form, [read(section.file, name) for name in names]))
            array = np.stack(layers) if rule.stacked else np.ascontiguousarray(layers[0])
            if rule is OPT_TOKENS:
                padding = model.language.vocabulary_rows - len(array)
                array = np.concatenate([array, np.zeros((padding, array.shape[1]), array.dtype)])
            leaves[f"{section.part}/{rule.target}"] = array
    if model.vision.positions == "sincos":
        name = "vision_model." + CLIP_POSITIONS.sources[0]
        found, fixed = read(VISION_FILE, name), _fixed_positions(model)
        if np.abs(found - fixed).max() > 1e-2:  # bfloat16 has three digits
            raise ValueError(f"{VISION_FILE}: {name} differs from the fixed sin-cos table by up to "
                             f"{np.abs(found - fixed).max():.2g}, but agent.json has model.vision.positions=sincos; "
                             "train with the table frozen, or set positions to clip there")
    return nested(leaves)


def shapes(model: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shape of every tensor, by file and name."""
    leaves = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat(abstract_params(model)).items()}
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for section, tensors in to_tensors(nested(leaves), model):
        found.setdefault(section.file, {}).update({name: tensor.shape for name, tensor in tensors.items()})
    return found


def in_module(tensors: Mapping[Section, Tensors]) -> Tensors:
    """The same tensors under the names of torch_agent.Agent's `named_parameters`."""
    return {f"{section.part}." + name.removeprefix(section.prefix): tensor
            for section, group in tensors.items() for name, tensor in group.items()}


def _fixed_positions(model: ModelConfig) -> np.ndarray:
    return sincos_positions(model.vision.image_size // model.vision.patch_size, model.vision.width)
