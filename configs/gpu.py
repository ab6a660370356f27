"""Pre-training at the paper's size on GPUs of 80 GB: one, a node of eight, or several nodes.

    python -m agent_jax.train --config configs/gpu.py --workdir DIR \
        --config.data.domains.language_table.path=DIR --config.data.domains.calvin.path=DIR \
        --config.data.domains.minecraft.path=DIR --config.data.domains.bleeding_edge.path=DIR \
        --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER \
        --config.init.pretrained.vision=DIR --config.init.pretrained.language=DIR

Started by launch/gpu_node.sh or launch/slurm.sbatch. Variants: `:one` GPU, `:node` of eight (the default), `:nodes` of
eight each, as many as there are (parameters are gathered inside a node, gradients added up between nodes);
`:opt-1.3b` (ViT-L/14 + OPT-1.3B) and `:opt-6.7b` (ViT-L/14 + OPT-6.7B), for a node of eight.

Planned (`python -m agent_jax.plan`, by XLA's compiler for an H100, 2026-11-28; no GPU has run it), 768 rows of 9 images
a step: 249,108,480 parameters, 2,293 TFLOP; 32 microbatches on one H100, 4 on eight. The paper's 1.6e20 operations are
112 GPU-hours at 40% of the H100's peak, an assumption. Of 74.5 GiB a GPU, and at least, by the roofline (more in
benchmarks/results/plans.md):

    :one            38.8 GiB    3.23 s a step     2,141 frames/s    72% MFU    63 GPU-hours    bound by HBM
    :node           45.7        0.43             16,192             68         66              HBM
    :nodes of 32    32.1        0.10             66,371             70         65              HBM
    :opt-1.3b       31.9        2.20              2,444             93         48              products
    :opt-6.7b       34.1        8.96                600             96         47              products
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def _gpus(*, replica: int = 1, data: int = 1, fsdp: int = 1, rows: int) -> presets.Change:
    def change(config: presets.Draft) -> None:
        config.mesh.platform = "gpu"
        config.mesh.replica, config.mesh.data, config.mesh.fsdp = replica, data, fsdp
        config.train.rows_per_device = rows

    return change


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "", "one", "node", "nodes", "opt-1.3b" or "opt-6.7b"."""
    large = [presets.pretraining, presets.clip_l14]
    # The state of the paper's model is 4 GB: a copy a GPU costs less than gathering it layer by layer.
    node = [presets.pretraining, _gpus(data=8, rows=24)]
    return presets.build(variant, {
        "": node,
        "one": [presets.pretraining, _gpus(rows=24)],
        "node": node,
        "nodes": [presets.pretraining, _gpus(replica=-1, fsdp=8, rows=24)],
        "opt-1.3b": [*large, presets.opt_1_3b, _gpus(fsdp=8, rows=8)],
        "opt-6.7b": [*large, presets.opt_6_7b, _gpus(fsdp=8, rows=2)],
    })
