"""Parameters from Hugging Face folders of CLIP and OPT, without PyTorch.

    folder -> config.json held against our config -> headers held against both -> tensors, one layer at a time

Every tensor of the files is used once or listed as left out, every leaf filled once or listed as fresh. Whatever does
not fit is said in one error, before a tensor is read.
"""

from __future__ import annotations

import functools
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from agent_jax.config import Config, LanguageConfig, ModelConfig, VisionConfig
from agent_jax.convert.account import Account, Item, Report, Shape
from agent_jax.convert.architecture import check_language, check_vision, config_from_huggingface
from agent_jax.convert.mapping import CLIP, CLIP_POSITIONS, OPT, OPT_TOKENS
from agent_jax.convert.port import account_of, check_tensors, check_tied, extended_table, filled, sources_of
from agent_jax.convert.safetensors_folder import open_folder
from agent_jax.fingerprint import flat, nested
from agent_jax.models.agent import Params, init_params
from agent_jax.vocabulary import Vocabulary

__all__ = ["config_from_huggingface", "load_language", "load_vision", "pretrained_params"]

Tree = dict[str, Any]  # nested dict of f32 NumPy arrays

# transformers 5 writes a vision tower without its prefix, 4 with it; OPTModel and OPTForCausalLM differ in theirs.
CLIP_PREFIXES = ("vision_model.", "")
OPT_PREFIXES = ("model.decoder.", "decoder.")
OPT_HEAD = "lm_head.weight"
CONTRASTIVE_HEAD = ("logit_scale", "text_projection.weight", "visual_projection.weight")

# The largest multiple that token tables are padded to; OPT's 50,265 ids have a table of 50,272 rows.
TABLE_MULTIPLE = 128


def load_vision(directory: str | pathlib.Path, config: VisionConfig) -> tuple[Tree, Account]:
    """The `vision` parameters of a CLIP folder: of the vision tower alone, or of the whole CLIP.

    Args:
        directory: config.json and safetensors, with or without the `vision_model.` prefix; f32, f16 or bf16.
        config: of the same sizes; its positions may be `sincos`, then CLIP's table is left out.

    Returns:
        (nested dict of f32 arrays without the temporal attention, the account).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another model, other sizes, or tensors that are missing, unknown or of another shape; lists all.
    """
    check_vision(config, directory)
    targets = _part_shapes(ModelConfig(vision=config, language=LanguageConfig(vocabulary_size=1)), "vision")
    fresh = {path: Item(shape, "temporal attention is not in CLIP; its output projection starts at zero")
             for path, shape in targets.items() if path.startswith("blocks/temporal_")}
    with open_folder(directory) as folder:
        sources = sources_of(CLIP, config.depth, folder, CLIP_PREFIXES)
        left_out = {name: Item(shape, reason) for name, shape in folder.shapes.items()
                    if (reason := _beside_the_tower(name))}
        if config.positions == "sincos":
            [[table]] = sources.pop(CLIP_POSITIONS)
            if table in folder.shapes:
                left_out[table] = Item(folder.shapes[table], "config.model.vision.positions is sincos, a fixed table")
        check_tensors(folder, sources, targets, fresh, left_out)
        leaves = {rule.target: filled(folder, rule, names, targets[rule.target]) for rule, names in sources.items()}
        return nested(leaves), account_of("vision", folder, sources, targets, fresh, left_out)


def _beside_the_tower(name: str) -> str:
    """Why a tensor of a CLIP file is none of the vision tower's; empty if it is, or is unknown."""
    if name.startswith("text_model."):
        return "the text tower"
    if name.endswith("embeddings.position_ids"):
        return "a constant"
    return "the contrastive head" if name in CONTRASTIVE_HEAD else ""


def load_language(
    directory: str | pathlib.Path, config: LanguageConfig, text_rows: int, seed: int = 0
) -> tuple[Tree, Account]:
    """The `language` parameters of an OPT folder, its token table cut to the tokenizer and extended for our blocks.

    Args:
        directory: config.json and safetensors of OPTModel or OPTForCausalLM; f32, f16 or bf16.
        config: of the same sizes, its `vocabulary_size` filled in.
        text_rows: ids of the text tokenizer; rows of the file beyond them are left out.
        seed: of the new rows: the mean of the text rows + N(0, config.token_std).

    Returns:
        (nested dict of f32 arrays, the account).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another model, other sizes, a tokenizer that is not of these weights, an untied output head, or
            tensors that are missing, unknown or of another shape; lists all.
    """
    check_language(config, directory)
    if not 0 < text_rows <= config.vocabulary_size:
        raise ValueError(f"config.model.language.vocabulary_size={config.vocabulary_size} must hold the tokenizer's "
                         f"{text_rows} ids")
    targets = _part_shapes(ModelConfig(language=config), "language")
    how = f"the mean of the text rows + N(0, {config.token_std}), seed {seed}"
    fresh = {f"token_embedding[{start}:{end}]": Item((end - start, config.width), f"{what}: {how}")
             for start, end, what in ((text_rows, config.vocabulary_size, "ids of our blocks"),
                                      (config.vocabulary_size, config.vocabulary_rows, "padding, which is never read"))}
    with open_folder(directory) as folder:
        rows = _table_rows(folder.config, text_rows, folder.directory)
        sources = sources_of(OPT, config.depth, folder, OPT_PREFIXES)
        [[table]] = sources[OPT_TOKENS]
        left_out, shapes = {}, {table: (rows, config.width)}
        if OPT_HEAD in folder.shapes:
            left_out[OPT_HEAD] = Item(folder.shapes[OPT_HEAD], "repeats the token table, to which the head is tied")
            shapes[OPT_HEAD] = shapes[table]
        check_tensors(folder, sources, targets, fresh, left_out, shapes)
        if OPT_HEAD in left_out:
            check_tied(folder, OPT_HEAD, table)
        if rows > text_rows:
            beyond = (rows - text_rows, config.width)
            left_out[f"{table}[{text_rows}:{rows}]"] = Item(beyond, "rows beyond the tokenizer's ids")
        leaves = {rule.target: filled(folder, rule, names, targets[rule.target])
                  for rule, names in sources.items() if rule is not OPT_TOKENS}
        leaves[OPT_TOKENS.target] = extended_table(
            folder, table, text_rows, config.vocabulary_rows, config.token_std, seed)
        return nested(leaves), account_of("language", folder, sources, targets, fresh, left_out)


def _table_rows(source: Mapping[str, Any], text_rows: int, directory: pathlib.Path) -> int:
    """Rows of the file's token table, which must be the tokenizer's or a few more."""
    rows = int(source.get("vocab_size", 50272))
    if not 0 <= rows - text_rows < TABLE_MULTIPLE:
        raise ValueError(f"{directory / 'config.json'}: vocab_size={rows}, but the tokenizer has {text_rows} ids, so "
                         "it is another one; set config.vocabulary.tokenizer to the folder of that of the weights")
    return rows


def pretrained_params(config: Config, vocabulary: Vocabulary, fresh: Params | jax.Array) -> tuple[Params, Report]:
    """Parameters that start from `config.init.pretrained`, the rest fresh.

    Args:
        config: `init.pretrained` names one or two folders; `seed` is that of the new token rows.
        vocabulary: its text ids are those of the language weights.
        fresh: parameters, whose ported leaves are replaced one by one and take on their sharding; or a key, by which
            only the leaves that no folder has are made.

    Returns:
        (complete parameters, a report to print). From a key, ported leaves are NumPy arrays; `fresh` is not changed.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: see `load_vision` and `load_language`; or no folder is named.
    """
    folders, model = config.init.pretrained, config.model
    if not (folders.vision or folders.language):
        raise ValueError("config.init.pretrained: vision and language are both empty, expected at least one folder")
    if model.language.vocabulary_size != vocabulary.size:
        raise ValueError(f"config.model.language.vocabulary_size={model.language.vocabulary_size}, but the vocabulary "
                         f"has {vocabulary.size} ids")
    parts, accounts = {}, []
    if folders.vision:
        parts["vision"], account = load_vision(folders.vision, model.vision)
        accounts.append(account)
    if folders.language:
        parts["language"], account = load_language(folders.language, model.language, vocabulary.text.size, config.seed)
        accounts.append(account)
    ported = flat(parts)
    shapes = _shapes(model)
    if isinstance(fresh, jax.Array):
        key = fresh

        def rest() -> dict[str, jax.Array]:  # what is not returned is not computed
            return {path: leaf for path, leaf in flat(init_params(model, key)).items() if path not in ported}

        leaves = {**ported, **jax.jit(rest)()}
    else:
        leaves = flat(fresh)
        if differing := {path for path in shapes.keys() | leaves.keys()
                         if path not in shapes or path not in leaves or leaves[path].shape != shapes[path]}:
            raise ValueError(f"the fresh parameters are not those of config.model: {', '.join(sorted(differing))}")
        for path in list(ported):
            leaves[path] = _like(leaves[path], ported.pop(path))
    reasons = {part: f"config.init.pretrained.{part} is empty" for part in ("vision", "language")}
    reasons |= {"connector": "CLIP and OPT have no connector", "mae": "CLIP and OPT have no MAE decoder"}
    others = {path: Item(shape, reasons[path.split("/")[0]]) for path, shape in shapes.items()
              if path.split("/")[0] not in parts}
    return nested({path: leaves[path] for path in shapes}), Report(tuple(accounts), others)


@functools.cache
def _shapes(config: ModelConfig) -> Mapping[str, Shape]:
    """Shapes of all leaves by path; nothing is computed."""
    leaves = flat(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    return types.MappingProxyType({path: leaf.shape for path, leaf in leaves.items()})


def _part_shapes(config: ModelConfig, part: str) -> dict[str, Shape]:
    """Shapes of one part's leaves, by path below it."""
    prefix = f"{part}/"
    return {path.removeprefix(prefix): shape for path, shape in _shapes(config).items() if path.startswith(prefix)}


def _like(leaf: Any, array: np.ndarray) -> Any:
    """The array where the leaf lives: on the host, or sharded over devices as it is."""
    if not isinstance(leaf, jax.Array):
        return array
    return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])
