"""Checkpoints of tiny random agents: of images or video, of robots or games, averaged or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from packed_rows import random_params

from agent_jax.actions import (
    BABYAI,
    BLEEDING_EDGE,
    LANGUAGE_TABLE,
    LANGUAGE_TABLE_STATE,
    MINECRAFT,
    ActionSpec,
    BoundSpec,
    StateSpec,
)
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints.checkpoint import Checkpoints
from agent_jax.config import (
    Config,
    DomainConfig,
    LanguageConfig,
    MaeConfig,
    ModelConfig,
    OptimizerConfig,
    VisionConfig,
    VocabularyConfig,
)
from agent_jax.data.pipeline.domains import Domain
from agent_jax.models.agent import Params
from agent_jax.train.restart import checkpoint_meta

# Domains without actions, by their layout.
LAYOUTS: dict[str, dict[str, Any]] = {"caption": {"layout": "answer", "answer": "answer", "max_answer": 8},
                                      "ward": {"layout": "label", "label": "label"}}
SPECS: dict[str, tuple[ActionSpec, StateSpec | None]] = {
    "table": (LANGUAGE_TABLE, LANGUAGE_TABLE_STATE), "minecraft": (MINECRAFT, None), "edge": (BLEEDING_EDGE, None),
    "babyai": (BABYAI, None),
}


@dataclasses.dataclass(frozen=True)
class Made:
    """A checkpoint and what is in it."""

    path: Path
    config: Config
    vocabulary: Vocabulary
    domains: dict[str, Domain]
    raw: Params
    average: Params  # the same where nothing is averaged


def tiny_config(vocabulary: Vocabulary, names: Sequence[str], *, ema: float = 0.0, classes: int = 0,
                form: Any = "mean", dropout: float = 0.1, **vision: Any) -> Config:
    """Sizes that differ from each other wherever they may."""
    sizes: dict[str, Any] = {"image_size": 24, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "mlp_width": 48,
                             **vision}
    model = ModelConfig(
        vision=VisionConfig(**sizes),
        language=LanguageConfig(width=24, depth=3, heads=3, mlp_width=40, positions=256, dropout=dropout,
                                vocabulary_size=vocabulary.size),
        mae=MaeConfig(width=16, depth=1, heads=4, mlp_width=24), classes=classes)
    domains = {name: DomainConfig() for name in names}
    config = Config(model=model, vocabulary=VocabularyConfig(blocks=("iafm", "babyai")),
                    optimizer=OptimizerConfig(ema=ema))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, domains=domains),
                               loss=dataclasses.replace(config.loss, form=form))


def make_domain(name: str, index: int, vocabulary: Vocabulary, **fields: Any) -> Domain:
    """A domain that acts by the spec of its name, or one of `LAYOUTS`."""
    spec, state = SPECS.get(name, (None, None))
    common: dict[str, Any] = {"window": 3, "stride": 3, "max_text": 12, "cameras": ("steps/observation/rgb",),
                              "instruction": "instruction", "image_size": 24, **LAYOUTS.get(name, {}), **fields}
    return Domain(name=name, index=index, spec=BoundSpec(spec, vocabulary) if spec else None,
                  state=BoundSpec(state, vocabulary) if state else None, vocabulary=vocabulary, **common)


def make_checkpoint(path: Path, names: Sequence[str] = ("table", "minecraft"), *, tokenizer: str = "bytes",
                    step: int = 7, domain_fields: dict[str, Any] | None = None, **config_fields: Any) -> Made:
    """Write a checkpoint of random parameters; averaged ones beside them if `ema` is set."""
    vocabulary = Vocabulary.build(tokenizer, ("iafm", "babyai"))
    config = tiny_config(vocabulary, names, **config_fields)
    domains = [make_domain(name, index, vocabulary, **(domain_fields or {}))
               for index, name in enumerate(sorted(names))]
    raw = random_params(config.model)
    state: dict[str, Any] = {"params": raw}
    average = raw
    if config.optimizer.ema:
        average = jax.tree.map(lambda leaf: leaf * 1.25, raw)
        state["averaged"] = average
    meta = checkpoint_meta(config, vocabulary, domains, None)
    with Checkpoints(path, keep_latest=1, keep_best=0) as checkpoints:
        checkpoints.save(step, state, meta)
    return Made(path, config, vocabulary, {domain.name: domain for domain in domains}, raw,
                jax.tree.map(np.asarray, average))
