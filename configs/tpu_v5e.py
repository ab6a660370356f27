"""Pre-training at the paper's size on TPU v5e: half the memory a chip of v4, and no fast links beyond 256 chips.

    python -m agent_jax.train --config configs/tpu_v5e.py --workdir gs://BUCKET/RUN \
        --config.data.domains.language_table.path=DIR --config.data.domains.calvin.path=DIR \
        --config.data.domains.minecraft.path=DIR --config.data.domains.bleeding_edge.path=DIR \
        --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER \
        --config.init.pretrained.vision=DIR --config.init.pretrained.language=DIR

The same command on every host. The global batch is the same on every slice (`config.train.rows_per_device`).

Planned (`python benchmarks/plan_counts.py`, 2026-11-26) on v5e-16, 768 rows of 9 images a step: 249,108,480 parameters,
2,293 TFLOP in 8 microbatches; parameters, moments and gradients of 1.39 GiB a chip. The paper's 1.6e20 operations are
564 chip-hours at 40% of the peak, an assumption. By the TPU's compiler v5e-16 needs 8.3 of its 16 GiB, and 1.21 s a
step at least, bound by HBM: 5,694 frames a second, 60% MFU, 376 chip-hours (benchmarks/results/plans.md).
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def _v5e(config: presets.Draft) -> None:
    config.mesh.platform = "tpu"
    config.mesh.data = -1
    config.mesh.fsdp = 4
    config.train.rows_per_device = 6
    config.model.unroll = 1  # without a scan 14.3 GiB, and 1.69 s a step at least: its compiler is short of memory


def get_config(variant: str = "") -> ConfigDict:
    """The config of the only variant, ""."""
    return presets.build(variant, {"": [presets.pretraining, _v5e]})
