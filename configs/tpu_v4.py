"""Pre-training at the paper's size on a slice of TPU v4, on its four data sets.

    python -m agent_jax.train --config configs/tpu_v4.py --workdir gs://BUCKET/RUN \
        --config.data.domains.language_table.path=DIR --config.data.domains.calvin.path=DIR \
        --config.data.domains.minecraft.path=DIR --config.data.domains.bleeding_edge.path=DIR \
        --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER \
        --config.init.pretrained.vision=DIR --config.init.pretrained.language=DIR

The same command on every host. The global batch is the same on every slice: fewer chips take more microbatches
(`config.train.rows_per_device`). Variants: `:opt-1.3b` (ViT-L/14 + OPT-1.3B) and `:opt-6.7b` (ViT-L/14 + OPT-6.7B), for
v4-128. `:smoke` runs two steps of a tiny model on 8 fake CPU devices in a mesh of all its axes but replica, on a few
demonstrations of BabyAI (needs the extra `babyai`).

Planned (`python benchmarks/plan_counts.py`, 2026-11-28), 768 rows of 9 images a step: 249,108,480 parameters, 2,293
TFLOP, and parameters, moments and gradients of 1.39 GiB a chip; in 16 microbatches on v4-8, 4 on v4-32, 1 on v4-128.
The paper's 1.6e20 operations are 404 chip-hours at 40% of the peak, an assumption. In rows of 7 images, on v4-128:
`:opt-1.3b` 1,660,141,900 parameters, 16,227 TFLOP, 3.09 GiB a chip; `:opt-6.7b` 7,007,643,980, 67,754, 4.88 GiB.
By the TPU's compiler, of 32 GiB a chip, and at least, by the roofline (more in
benchmarks/results/plans.md):

    v4-32               26.2 GiB    0.90 s a step     7,652 frames/s    58% MFU    280 chip-hours    bound by HBM
    v4-128, opt-1.3b    20.1        1.09              4,921             84         191               products
    v4-128, opt-6.7b    21.7        4.29              1,252             90         180               products
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def _v4(config: presets.Draft) -> None:
    config.mesh.platform = "tpu"
    config.mesh.data = -1  # whatever fsdp leaves
    config.mesh.fsdp = 4  # the chips of a host: parameters are gathered over its own links
    config.train.rows_per_device = 12  # of 9 images each; 16 take 29.3 of 32 GiB


def _v4_1_3b(config: presets.Draft) -> None:
    config.mesh.fsdp = 16
    config.train.rows_per_device = 4


def _v4_6_7b(config: presets.Draft) -> None:
    config.mesh.fsdp = 64  # all chips of v4-128: parameters, moments and gradients are 112 GB
    config.train.rows_per_device = 2


def _smoke(config: presets.Draft) -> None:
    presets.tiny_run(config)
    config.mesh.platform = "cpu"
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    config.model.language.positions = 512
    config.vocabulary.tokenizer = "bytes"
    config.vocabulary.blocks = ("iafm", "babyai")
    config.data.domains = {"babyai": presets.domain(window=4, stride=4, max_text=32)}
    config.data.demonstrations.environment = "babyai"
    config.data.demonstrations.episodes = {"GoToObj": 16}
    config.data.demonstrations.validation_episodes = 8
    config.data.demonstrations.processes = 1
    config.data.workers = 0
    config.train.batch_size = 8
    config.train.rows_per_device = 0


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "", "opt-1.3b", "opt-6.7b" or "smoke"."""
    paper = [presets.pretraining, _v4]
    large = [presets.pretraining, presets.clip_l14, _v4]
    return presets.build(variant, {
        "": paper,
        "opt-1.3b": [*large, presets.opt_1_3b, _v4_1_3b],
        "opt-6.7b": [*large, presets.opt_6_7b, _v4_6_7b],
        "smoke": [*paper, _smoke],
    })
