"""Fine-tune a pre-trained agent on Minecraft: keys, mouse buttons and camera of contractors, 20 a second.

    python -m agent_jax.train --config configs/finetune/minecraft.py --workdir runs/minecraft \
        --config.data.domains.minecraft.path=DIR --config.init.checkpoint=PRETRAINED \
        --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER

DIR is what `python -m agent_jax.data prepare --source vpt` made; PRETRAINED is a workdir of pre-training.

Hardware: one accelerator or several; it has run on none yet. `--config.train.rows_per_device=N` sets how many rows a
device computes at once; the batch stays the same.

The paper's figures: BLEU-4 of the actions 0.272 after pre-training and fine-tuning, 0.170 after pre-training only,
0.174 from CLIP and OPT (teacher-forced, 100 held-out videos).

Variants: `:smoke` runs two steps of a tiny model on any machine.
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def _main(config: presets.Draft) -> None:
    presets.finetune(config, steps=10_000)  # the paper's games over-fit within 5 epochs: the best step counts
    config.data.domains = {"minecraft": presets.paper_domain("minecraft")}
    config.checkpoint.best_metric = "action"


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "smoke"."""
    return presets.build(variant, {"": [_main], "smoke": [_main, presets.finetune_smoke]})
