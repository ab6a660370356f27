"""The plan of a conversion, from config.json and headers alone: which tensors fill which leaf, and how.

    config.json checked against our config -> headers checked against both -> LoadPlan

Every tensor of the files is used once or listed as left out, every leaf is filled once or listed as fresh. All
mismatches are listed in one error.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import jax

from agent_jax.checkpoints.exported.mapping import CLIP, CLIP_POSITIONS, OPT, OPT_TOKENS
from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import ModelConfig
from agent_jax.convert.huggingface import open_clip
from agent_jax.convert.huggingface.architecture import check_language, check_vision
from agent_jax.convert.huggingface.load_report import Item, Ported, Shape, TowerReport
from agent_jax.convert.huggingface.port import Sources, check_tensors, in_short, sources_of
from agent_jax.convert.huggingface.weights_folder import WeightsFolder, config_path
from agent_jax.models.agent import init_params

# transformers 5 writes a vision tower without its prefix, 4 with it; OPTModel and OPTForCausalLM differ in theirs.
CLIP_PREFIXES = ("vision_model.", "")
OPT_PREFIXES = ("model.decoder.", "decoder.")
OPT_HEAD = "lm_head.weight"
CONTRASTIVE_HEAD = ("logit_scale", "text_projection.weight", "visual_projection.weight")

# Token tables are padded to at most this multiple; OPT's 50,265 ids have 50,272 rows.
TABLE_MULTIPLE = 128

OPERATIONS = {"copy": "copy", "dense": "transpose", "conv": "conv to rows of pixels", "qkv": "transpose, fuse q, k, v",
              "qkv_bias": "fuse q, k, v"}


@dataclasses.dataclass(frozen=True)
class LoadPlan:
    """The plan for one part of the parameters."""

    part: str  # vision or language
    folder: WeightsFolder
    sources: Sources
    targets: Mapping[str, Shape]  # leaves by path below the part
    fresh: Mapping[str, Item]
    left_out: Mapping[str, Item]
    special: Mapping[str, str]  # operation by target, if it is not that of the rule's form

    @property
    def report(self) -> TowerReport:
        """The report, without items that have no values."""
        ported = {}
        for rule, layers in self.sources.items():
            operation = self.special.get(rule.target, OPERATIONS[rule.form]) + (", stack" if rule.stacked else "")
            tensors = tuple(itertools.chain.from_iterable(layers))
            leaf = Ported(self.targets[rule.target], tensors, in_short(rule, layers), operation)
            ported[f"{self.part}/{rule.target}"] = leaf
        fresh = {f"{self.part}/{path}": item for path, item in self.fresh.items() if math.prod(item.shape)}
        return TowerReport(self.part, str(self.folder.path), self.folder.source, ported, fresh, self.left_out)


def plan_vision(folder: WeightsFolder, model: ModelConfig, *, interpolate_positions: bool = False) -> LoadPlan:
    """How a CLIP fills `vision` of a model; errors as in `load_vision`."""
    config = model.vision
    theirs = check_vision(config, folder.path, interpolate_positions=interpolate_positions)
    _check_depth(folder, theirs.depth)
    sources = sources_of(CLIP, config.depth, folder, CLIP_PREFIXES)
    [[table]] = sources[CLIP_POSITIONS]
    table_shape = (1 + theirs.patches, theirs.width)
    if (found := folder.shapes.get(table, table_shape)) != table_shape:  # before shapes of that size are made
        raise ValueError(f"{folder.path}: {table}: found {list(found)}, expected {list(table_shape)}, for image_size="
                         f"{theirs.image_size} and patch_size={theirs.patch_size} of its config.json")
    targets = _part_shapes(model, "vision")
    fresh = {path: Item(shape, "temporal attention is not in CLIP; its output projection starts at zero")
             for path, shape in targets.items() if path.startswith("blocks/temporal_")}
    left_out = {name: Item(shape, reason) for name, shape in folder.shapes.items()
                if (reason := _reason_to_leave_out(name))}
    shapes, special = {}, {}
    if config.positions == "sincos":
        del sources[CLIP_POSITIONS]
        if table in folder.shapes:
            size = ("" if theirs.image_size == config.image_size
                    else f", here for images of {config.image_size} pixels, not {theirs.image_size}")
            left_out[table] = Item(table_shape, f"config.model.vision.positions is sincos, a fixed table{size}")
    else:
        shapes[table] = table_shape
        if theirs.image_size != config.image_size:
            old, new = (part.image_size // part.patch_size for part in (theirs, config))
            special[CLIP_POSITIONS.target] = f"keep CLS, resize {old} x {old} to {new} x {new} (bicubic)"
    check_tensors(folder, sources, targets, fresh, left_out, shapes)
    return LoadPlan("vision", folder, sources, targets, fresh, left_out, special)


def plan_language(folder: WeightsFolder, model: ModelConfig, text_rows: int, seed: int) -> LoadPlan:
    """How an OPT fills `language` of a model; errors as in `load_language`."""
    config = model.language
    check_language(config, folder.path)
    if not 0 < text_rows <= config.vocabulary_size:
        raise ValueError(f"config.model.language.vocabulary_size={config.vocabulary_size} must hold the tokenizer's "
                         f"{text_rows} ids")
    _check_depth(folder, config.depth)
    targets = _part_shapes(model, "language")
    how = f"the mean of the text rows + N(0, {config.token_std}), seed {seed}"
    fresh = {f"token_embedding[{start}:{end}]": Item((end - start, config.width), f"{what}: {how}")
             for start, end, what in ((text_rows, config.vocabulary_size, "ids of our blocks"),
                                      (config.vocabulary_size, config.vocabulary_rows, "padding, never read"))}
    rows = _table_rows(folder.config, text_rows, config_path(folder.path))
    sources = sources_of(OPT, config.depth, folder, OPT_PREFIXES)
    [[table]] = sources[OPT_TOKENS]
    left_out, shapes = {}, {table: (rows, config.width)}
    if OPT_HEAD in folder.shapes:
        left_out[OPT_HEAD] = Item(folder.shapes[OPT_HEAD], "repeats the token table, to which the head is tied")
        shapes[OPT_HEAD] = shapes[table]
    check_tensors(folder, sources, targets, fresh, left_out, shapes)
    if rows > text_rows:
        beyond = (rows - text_rows, config.width)
        left_out[f"{table}[{text_rows}:{rows}]"] = Item(beyond, "rows beyond the tokenizer's ids")
    special = {OPT_TOKENS.target: f"copy {text_rows:,} rows, extend to {config.vocabulary_rows:,}"}
    return LoadPlan("language", folder, sources, targets, fresh, left_out, special)


def _reason_to_leave_out(name: str) -> str:
    """Why a tensor of a CLIP file is not part of the vision tower; "" if it is, or is unknown."""
    if name.startswith("text_model."):
        return "the text tower"
    if name.endswith("embeddings.position_ids"):
        return "a constant"
    return "the contrastive head" if name in CONTRASTIVE_HEAD else open_clip.reason_to_leave_out(name)


def _check_depth(folder: WeightsFolder, depth: int) -> None:
    """Raise ValueError for more layers than tensors, before all that are missing are listed."""
    if depth > len(folder.shapes):
        raise ValueError(f"{config_path(folder.path)}: num_hidden_layers={depth}, but {folder.path} has "
                         f"{len(folder.shapes)} tensors in all ({folder.source})")


def _table_rows(source: Mapping[str, Any], text_rows: int, where: pathlib.Path) -> int:
    """Rows of the file's token table; ValueError unless they are the tokenizer's or a few more."""
    rows = source.get("vocab_size", 50272)
    if type(rows) is not int or not 0 <= rows - text_rows < TABLE_MULTIPLE:
        raise ValueError(f"{where}: vocab_size={rows!r}, but the tokenizer has {text_rows} ids; set "
                         "config.vocabulary.tokenizer to the folder of the weights' own tokenizer")
    return rows


@functools.cache
def model_shapes(config: ModelConfig) -> Mapping[str, Shape]:
    """Shapes of all leaves by path."""
    leaves = flat(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    return types.MappingProxyType({path: leaf.shape for path, leaf in leaves.items()})


def _part_shapes(config: ModelConfig, part: str) -> dict[str, Shape]:
    """Shapes of one part's leaves, by path below it."""
    prefix = f"{part}/"
    return {path.removeprefix(prefix): shape for path, shape in model_shapes(config).items() if path.startswith(prefix)}
