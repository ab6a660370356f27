"""Shared by the tests of the converter: tiny configs, loaders of one tower, and the comparison of two trees."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import LanguageConfig, MaeConfig, ModelConfig, VisionConfig
from agent_jax.convert.huggingface import load
from agent_jax.convert.huggingface.architecture import language_config
from agent_jax.convert.huggingface.load_report import TowerReport

MAE = MaeConfig(width=16, depth=1, heads=2, mlp_width=16)
SMALL_MAE = [f"--config.model.mae.{name}={value}" for name, value in dataclasses.asdict(MAE).items()
             if name in ("width", "depth", "heads", "mlp_width")]


def opt_config(directory: str | pathlib.Path, size: int = 264, multiple: int = 1) -> LanguageConfig:
    """The config of an OPT's weights with a vocabulary of `size` ids."""
    return dataclasses.replace(language_config(directory), vocabulary_size=size, vocabulary_multiple=multiple)


def load_vision(directory: str | pathlib.Path, config: VisionConfig, **options: bool) -> tuple[load.Tree, TowerReport]:
    """`load.load_vision` for a model with this encoder."""
    return load.load_vision(directory, ModelConfig(config, LanguageConfig(vocabulary_size=1)), **options)


def load_language(directory: str | pathlib.Path, config: LanguageConfig, text_rows: int,
                  seed: int = 0) -> tuple[load.Tree, TowerReport]:
    """`load.load_language` for a model with this language model."""
    return load.load_language(directory, ModelConfig(language=config), text_rows, seed)


def same_values(one: Any, other: Any) -> None:
    """Fail unless two trees have the same paths and, to the bit, the same values."""
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)
