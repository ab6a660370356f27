"""Language-Table: the full-size agent (CLIP ViT-B/16, OPT-125M, five-block decoder) on robot episodes in RLDS schema.

    python -m agent_jax.train --config configs/language_table.py \
        --config.data.domains.language_table.path=DIR [--config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER] \
        [--config.init.pretrained.vision=DIR --config.init.pretrained.language=DIR]

DIR is a data set of the public one's field names, as array_record: the directory with dataset_info.json.
The default is for a CPU: one row of four steps, and the language model sees the visible quarter of the patches, as in
the authors' code. On 2 cores of an Intel Xeon (Sapphire Rapids) it takes 3.5 s a step in f32 and 5.2 GiB (2026-11-27;
benchmarks/results/ says how measured).
Variants: `:accelerator`, the paper's fine-tuning for a GPU or TPU; `:smoke`, two steps of a tiny model.
"""

from ml_collections import ConfigDict

from agent_jax.actions import LANGUAGE_TABLE, LANGUAGE_TABLE_STATE
from agent_jax.config import presets


def _main(config: presets.Draft) -> None:
    config.data.domains = {
        "language_table": presets.domain(
            instruction="steps/observation/instruction",
            action_spec=LANGUAGE_TABLE.to_dict(),
            state_spec=LANGUAGE_TABLE_STATE.to_dict(),
            window=4,  # paper
            stride=4,
            max_text=96,  # a byte a token; OPT's own tokenizer needs a quarter of it
        )
    }
    config.optimizer.learning_rate = 1e-4


def _cpu(config: presets.Draft) -> None:
    config.model.visual_tokens = "visible"  # 4 x 50 visual tokens a row in place of 4 x 197, and one encoder pass
    config.model.language.dropout = 0.0  # random bits are drawn slowly on a CPU
    config.train.batch_size = 1
    config.train.steps = 1_000
    config.train.log_every = 1
    config.train.validate_every = 200
    config.checkpoint.every = 200  # 2.8 GiB a step: parameters and both moments


def _accelerator(config: presets.Draft) -> None:
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.model.mae.mask_ratio = 0.5  # paper: of robotics fine-tuning
    config.train.batch_size = 64
    config.train.steps = 20_000
    config.data.workers = 4


def _smoke(config: presets.Draft) -> None:
    presets.tiny_run(config)
    config.train.batch_size = 2


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "", "accelerator" or "smoke"."""
    variants = {"": [_main, _cpu], "accelerator": [_main, _accelerator], "smoke": [_main, _cpu, _smoke]}
    return presets.build(variant, variants)
