"""Fine-tune a pre-trained agent on Bleeding Edge: buttons and two sticks of a gamepad, 10 a second.

    python -m agent_jax.train --config configs/finetune/bleeding_edge.py --workdir runs/bleeding_edge \
        --config.data.domains.bleeding_edge.path=DIR --config.init.checkpoint=PRETRAINED \
        --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER

DIR is what `python -m agent_jax.data prepare --source bleeding_edge` made of the public sample, with its option
`buttons` (docs/guides/data_sources.md); PRETRAINED is a workdir of pre-training.

Hardware: one accelerator or several; it has run on none yet. `--config.train.rows_per_device=N` sets how many rows a
device computes at once; the batch stays the same.

The paper's figures: BLEU-4 of the actions 0.411 after pre-training and fine-tuning, 0.249 after pre-training only,
0.238 from CLIP and OPT (teacher-forced, 100 held-out videos).

Variants: `:smoke` runs two steps of a tiny model on any machine.
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def _main(config: presets.Draft) -> None:
    presets.finetune(config, steps=10_000)  # the paper's games over-fit within 5 epochs: the best step counts
    config.data.domains = {"bleeding_edge": presets.paper_domain("bleeding_edge")}
    config.checkpoint.best_metric = "action"


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "smoke"."""
    return presets.build(variant, {"": [_main], "smoke": [_main, presets.finetune_smoke]})
