"""A run's config: its fields and their checks, reading a config file, and presets that config files are made of."""

from __future__ import annotations

from agent_jax.config.load import from_config_dict, to_config_dict
from agent_jax.config.schema import (
    AugmentationConfig,
    CheckpointConfig,
    ClosedLoopConfig,
    Config,
    DataConfig,
    DemonstrationsConfig,
    DomainConfig,
    EvaluationConfig,
    InitConfig,
    LanguageConfig,
    LogConfig,
    LoraConfig,
    LossConfig,
    MaeConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainedConfig,
    TrainConfig,
    VisionConfig,
    VocabularyConfig,
)

__all__ = [
    "AugmentationConfig",
    "CheckpointConfig",
    "ClosedLoopConfig",
    "Config",
    "DataConfig",
    "DemonstrationsConfig",
    "DomainConfig",
    "EvaluationConfig",
    "InitConfig",
    "LanguageConfig",
    "LogConfig",
    "LoraConfig",
    "LossConfig",
    "MaeConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PretrainedConfig",
    "TrainConfig",
    "VisionConfig",
    "VocabularyConfig",
    "from_config_dict",
    "to_config_dict",
]
