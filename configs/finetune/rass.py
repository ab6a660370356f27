"""Fine-tune a pre-trained agent to classify clips: the RASS score of a patient (sedation), 10 classes.

    python -m agent_jax.train --config configs/finetune/rass.py --workdir runs/rass \
        --config.data.domains.rass.path=DIR --config.init.checkpoint=PRETRAINED \
        --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER

DIR is what `python -m agent_jax.data prepare --source video_text --config.window=9` made; PRETRAINED is a workdir of
pre-training.

Hardware: one accelerator or several; it has run on none yet. `--config.train.rows_per_device=N` sets how many rows a
device computes at once; the batch stays the same.

The paper's figures: accuracy 95.7% after pre-training, 70.3% from scratch; 55.4 and 92.6% from CLIP and OPT, frozen and
not. Its data are not public.

Variants: `:smoke` runs two steps of a tiny model on any machine.
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def _main(config: presets.Draft) -> None:
    presets.finetune(config, steps=5_000, batch_size=256, learning_rate=4e-5)  # the paper's, for 20 epochs
    config.model.vision.temporal_attention = True  # the 9 images are one clip
    config.model.classes = 10
    config.data.domains = {"rass": presets.domain(layout="label", window=9, stride=9, video=True)}
    config.checkpoint.best_metric = "label_accuracy"


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "smoke"."""
    return presets.build(variant, {"": [_main], "smoke": [_main, presets.finetune_smoke]})
