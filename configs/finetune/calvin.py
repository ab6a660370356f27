"""Fine-tune a pre-trained agent on CALVIN ABCD: a robot arm at a table, instructions in chains of five.

    python -m agent_jax.train --config configs/finetune/calvin.py --workdir runs/calvin \
        --config.data.domains.calvin.path=DIR --config.init.checkpoint=PRETRAINED \
        --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER

DIR is what `python -m agent_jax.data prepare --source calvin` made; PRETRAINED is a workdir of pre-training.

Hardware: one accelerator or several; it has run on none yet. `--config.train.rows_per_device=N` sets how many rows a
device computes at once; the batch stays the same.

The paper's figures: 1 to 5 tasks in a row 64.8, 29.0, 12.3, 4.7 and 1.9%, average length 1.127; from CLIP and OPT 20.6,
0.8, 0, 0 and 0%, 0.214; MCIL 0.31 (ABCD to D, 1,000 chains, 360 steps a task).

Variants: `:smoke` runs two steps of a tiny model on any machine.
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def _main(config: presets.Draft) -> None:
    presets.finetune(config, steps=20_000, mask_ratio=0.5)
    config.data.domains = {"calvin": presets.paper_domain("calvin")}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "smoke"."""
    return presets.build(variant, {"": [_main], "smoke": [_main, presets.finetune_smoke]})
