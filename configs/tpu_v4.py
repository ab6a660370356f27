"""Pre-training at the paper's size on a slice of TPU v4: three of its four data sets (Bleeding Edge is not public).

    python -m agent_jax.train --config configs/tpu_v4.py --workdir gs://BUCKET/RUN \
        --config.data.domains.language_table.path=DIR --config.data.domains.calvin.path=DIR \
        --config.data.domains.minecraft.path=DIR --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER \
        --config.init.pretrained.vision=DIR --config.init.pretrained.language=DIR

The same command on every host. Variant `:smoke` runs two steps of a tiny model on 8 fake CPU devices in a mesh of all
three axes, on a few demonstrations of BabyAI (needs the extra `babyai`).
"""

from ml_collections import ConfigDict

from agent_jax import presets
from agent_jax.actions import CALVIN, LANGUAGE_TABLE, LANGUAGE_TABLE_STATE, MINECRAFT


def _main(config: presets.Draft) -> None:
    config.mesh.platform = "tpu"
    config.mesh.data = -1  # whatever fsdp leaves
    config.mesh.fsdp = 4  # the chips of a host: parameters are gathered over its own links
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"

    # Weights of 1: plain concatenation, as in the paper. Windows and their number are the paper's.
    config.data.domains = {
        "language_table": presets.domain(  # 1,233,659 windows
            instruction="steps/observation/instruction", action_spec=LANGUAGE_TABLE.to_dict(),
            state_spec=LANGUAGE_TABLE_STATE.to_dict(), window=4, stride=4,
        ),
        "calvin": presets.domain(  # 360,566; the bins of its state follow its statistics, so the data set brings them
            action_spec=CALVIN.to_dict(), window=4, stride=4
        ),
        "minecraft": presets.domain(action_spec=MINECRAFT.to_dict(), window=9, stride=9),  # 525,309
    }
    presets.paper_augmentation(config)
    config.data.workers = 16
    config.data.prefetch = 8

    config.train.batch_size = 768  # 192 GPUs of 4, by the paper's compute
    config.train.steps = 276_000  # 100 epochs of 2,119,534 windows
    config.train.validate_every = 2_000
    config.train.validation_batches = 16
    config.checkpoint.every = 2_000


def _smoke(config: presets.Draft) -> None:
    presets.tiny_run(config)
    config.mesh.platform = "cpu"
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    config.model.language.positions = 512
    config.vocabulary.blocks = ("iafm", "babyai")
    config.data.domains = {"babyai": presets.domain(window=4, stride=4, max_text=32)}
    config.data.demonstrations.environment = "babyai"
    config.data.demonstrations.episodes = {"GoToObj": 16}
    config.data.demonstrations.validation_episodes = 8
    config.data.demonstrations.processes = 1
    config.data.workers = 0
    config.train.batch_size = 8


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "smoke"."""
    return presets.build(variant, {"": [_main], "smoke": [_main, _smoke]})
