"""Parameters from CLIP and OPT in Hugging Face's formats, without PyTorch.

    folder -> config.json and headers checked against our config (plan.py) -> tensors, one layer at a time -> leaves

All mismatches are listed in one error, before a tensor is read.
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

import jax
import numpy as np

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints.exported.mapping import CLIP_POSITIONS, OPT_TOKENS
from agent_jax.checkpoints.fingerprint import flat, nested
from agent_jax.config import Config, ModelConfig
from agent_jax.convert.huggingface.load_report import Item, LoadReport, TowerReport
from agent_jax.convert.huggingface.plan import OPT_HEAD, LoadPlan, model_shapes, plan_language, plan_vision
from agent_jax.convert.huggingface.port import check_tied, extended_table, filled
from agent_jax.convert.huggingface.positions import resized_positions
from agent_jax.convert.huggingface.weights_folder import open_folder
from agent_jax.models.agent import Params, init_params

Tree = dict[str, Any]  # nested dict of f32 NumPy arrays


def load_vision(directory: str | pathlib.Path, model: ModelConfig, *,
                interpolate_positions: bool = False) -> tuple[Tree, TowerReport]:
    """The `vision` parameters of a CLIP: of the vision tower alone, or of the whole CLIP.

    Args:
        directory: a folder, one of its weight files or a name of the hub (weights_folder.py), with or without the
            `vision_model.` prefix; f32, f16 or bf16.
        model: its `vision` has the sizes of the weights. With `sincos` positions CLIP's table is left out, and images
            may have another size.
        interpolate_positions: resize CLIP's table to another `image_size`.

    Returns:
        (nested dict of f32 arrays without the temporal attention, report).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another model, other sizes, values that are not finite, or tensors that are missing, unknown or of
            another shape; lists all.
    """
    with open_folder(directory) as folder:
        plan = plan_vision(folder, model, interpolate_positions=interpolate_positions)
        leaves = _filled(plan)
        if CLIP_POSITIONS.target in plan.special:
            [[table]] = plan.sources[CLIP_POSITIONS]
            leaves[CLIP_POSITIONS.target] = resized_positions(
                folder.read_finite(table), model.vision.image_size // model.vision.patch_size)
        return nested(leaves), plan.report


def load_language(directory: str | pathlib.Path, model: ModelConfig, text_rows: int,
                  seed: int = 0) -> tuple[Tree, TowerReport]:
    """The `language` parameters of an OPT, its token table cut to the tokenizer and extended for our blocks.

    Args:
        directory: a folder, one of its weight files or a name of the hub (weights_folder.py), of OPTModel or
            OPTForCausalLM; f32, f16 or bf16.
        model: its `language` has the sizes of the weights, and our `vocabulary_size`.
        text_rows: ids of the text tokenizer; rows of the file beyond them are left out.
        seed: of the new rows: the mean of the text rows + N(0, token_std).

    Returns:
        (nested dict of f32 arrays, report).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another model, other sizes, another tokenizer, an untied output head, values that are not finite, or
            tensors that are missing, unknown or of another shape; lists all.
    """
    config = model.language
    with open_folder(directory) as folder:
        plan = plan_language(folder, model, text_rows, seed)
        [[table]] = plan.sources[OPT_TOKENS]
        if OPT_HEAD in plan.left_out:
            check_tied(folder, OPT_HEAD, table)
        leaves = _filled(plan)
        leaves[OPT_TOKENS.target] = extended_table(
            folder, table, text_rows, config.vocabulary_rows, config.token_std, seed)
        return nested(leaves), plan.report


def _filled(plan: LoadPlan) -> dict[str, np.ndarray]:
    """The leaves that follow from a rule alone."""
    return {rule.target: filled(plan.folder, rule, names, plan.targets[rule.target])
            for rule, names in plan.sources.items() if rule.target not in plan.special}


def pretrained_report(config: Config, vocabulary: Vocabulary) -> LoadReport:
    """The report and the errors of `pretrained_params`, from headers alone; values are not checked."""
    _check_vocabulary(config, vocabulary)
    pretrained, towers = config.init.pretrained, []
    with contextlib.ExitStack() as stack:
        if pretrained.vision:
            folder = stack.enter_context(open_folder(pretrained.vision))
            towers.append(plan_vision(folder, config.model,
                                      interpolate_positions=pretrained.interpolate_positions).report)
        if pretrained.language:
            folder = stack.enter_context(open_folder(pretrained.language))
            towers.append(plan_language(folder, config.model, vocabulary.text.size, config.seed).report)
    return _report(config, towers)


def pretrained_params(config: Config, vocabulary: Vocabulary, key: jax.Array) -> tuple[Params, LoadReport]:
    """Parameters from `config.init.pretrained`, the rest random.

    Args:
        config: `init.pretrained` names one or two models; `seed` is that of the new token rows.
        vocabulary: its text ids are those of the language weights.
        key: for the leaves that no folder fills.

    Returns:
        (complete parameters, a report to print). Ported leaves are NumPy arrays.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: see `load_vision` and `load_language`; or no folder is named.
    """
    _check_vocabulary(config, vocabulary)
    pretrained, model = config.init.pretrained, config.model
    parts, towers = {}, []
    if pretrained.vision:
        parts["vision"], tower = load_vision(pretrained.vision, model,
                                             interpolate_positions=pretrained.interpolate_positions)
        towers.append(tower)
    if pretrained.language:
        parts["language"], tower = load_language(pretrained.language, model, vocabulary.text.size, config.seed)
        towers.append(tower)
    ported = flat(parts)

    def rest() -> dict[str, jax.Array]:  # XLA computes only what is returned
        return {path: leaf for path, leaf in flat(init_params(model, key)).items() if path not in ported}

    leaves = {**ported, **jax.jit(rest)()}
    return nested({path: leaves[path] for path in model_shapes(model)}), _report(config, towers)


def _check_vocabulary(config: Config, vocabulary: Vocabulary) -> None:
    """Raise ValueError for a config that names no weights, or has another vocabulary size."""
    if not (config.init.pretrained.vision or config.init.pretrained.language):
        raise ValueError("config.init.pretrained: vision and language are both empty, expected at least one folder")
    if config.model.language.vocabulary_size != vocabulary.size:
        raise ValueError(f"config.model.language.vocabulary_size={config.model.language.vocabulary_size}, but the "
                         f"vocabulary has {vocabulary.size} ids")


def _report(config: Config, towers: list[TowerReport]) -> LoadReport:
    """The towers, and the leaves of the parts that no folder fills."""
    reasons = {part: f"config.init.pretrained.{part} is empty" for part in ("vision", "language")}
    reasons |= {"connector": "CLIP and OPT have no connector", "mae": "CLIP and OPT have no MAE decoder",
                "classifier": "CLIP and OPT have no class head"}
    for tower in towers:
        del reasons[tower.part]
    return LoadReport(tuple(towers), {path: Item(shape, reasons[part])
                                      for path, shape in model_shapes(config.model).items()
                                      if (part := path.split("/")[0]) in reasons})
