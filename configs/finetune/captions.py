"""Fine-tune a pre-trained agent to caption videos: clips of 9 images, the caption is predicted.

    python -m agent_jax.train --config configs/finetune/captions.py --workdir runs/captions \
        --config.data.domains.captions.path=DIR --config.init.checkpoint=PRETRAINED \
        --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER

DIR is what `python -m agent_jax.data prepare --source video_text --config.window=9` made; PRETRAINED is a workdir of
pre-training.

Hardware: one accelerator or several; it has run on none yet. `--config.train.rows_per_device=N` sets how many rows a
device computes at once; the batch stays the same.

The paper's figures: perplexity of healthcare texts 106.3 after pre-training and 100.0 from scratch; 93.3 and 102.7
from CLIP and OPT, frozen and not. The paper says that pre-training did not help its texts. Its data are not public.

Variants: `:smoke` runs two steps of a tiny model on any machine.
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def _main(config: presets.Draft) -> None:
    presets.finetune(config, steps=10_000, batch_size=256, learning_rate=4e-5)  # the paper's, for 20 epochs
    config.model.vision.temporal_attention = True  # the 9 images are one clip
    config.data.domains = {"captions": presets.domain(layout="answer", window=9, stride=9, video=True, max_text=32)}
    config.checkpoint.best_metric = "language"


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "smoke"."""
    return presets.build(variant, {"": [_main], "smoke": [_main, presets.finetune_smoke]})
