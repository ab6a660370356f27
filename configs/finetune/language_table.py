"""Fine-tune a pre-trained agent on Language-Table: two-dimensional pushing by instructions.

    python -m agent_jax.train --config configs/finetune/language_table.py --workdir runs/language_table \
        --config.data.domains.language_table.path=DIR --config.init.checkpoint=PRETRAINED \
        --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER

DIR is a data set of the public one's field names, as array_record. PRETRAINED is a workdir of pre-training.

Hardware: one accelerator or several; it has run on none yet. `--config.train.rows_per_device=N` sets how many rows a
device computes at once; the batch stays the same.

The paper's figures: success 42.0% after pre-training, 40.0% from CLIP and OPT (all 5 rewards, 50 episodes each, 200
steps).

Variants: `:replay` mixes in the pre-training data at a tenth of their weight (pass the paths of `calvin`,
`minecraft` and `bleeding_edge` as well). `:smoke` runs two steps of a tiny model on any machine.
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def _main(config: presets.Draft) -> None:
    presets.finetune(config, steps=20_000, mask_ratio=0.5)
    config.data.domains = {"language_table": presets.paper_domain("language_table")}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "", "replay" or "smoke"."""
    return presets.build(variant, {
        "": [_main],
        "replay": [_main, presets.replay],
        "smoke": [_main, presets.finetune_smoke],
    })
