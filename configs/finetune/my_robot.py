"""Fine-tune a pre-trained agent on your robot: a LeRobot data set of two cameras. Copy this file, change ten lines.

    python -m agent_jax.data prepare --source lerobot --path MY_DATASET --out my_data --config.image_size=224 \
        --config.cameras.front=observation.images.front --config.cameras.wrist=observation.images.wrist
    python -m agent_jax.train --config configs/finetune/my_robot.py --workdir runs/my_robot \
        --config.init.checkpoint=PRETRAINED --config.vocabulary.tokenizer=DIR_OF_OPT_TOKENIZER

PRETRAINED is a workdir of pre-training. Without one, start from CLIP and OPT with `--config.init.pretrained.vision` and
`.language`. Names and rate of the actions are your robot's; `bounds="quantiles"` finds the bounds in the data.

Hardware: one accelerator or several; it has run on none yet. `--config.train.rows_per_device=N` sets how many rows a
device computes at once; the batch stays the same.

The paper has no figure for a robot of your own.

Variants: `:lora` trains low-rank adapters alone, a few MB. `:scratch` trains a small agent from scratch on the same
data, on a CPU, with a learning rate of 2e-3 and no weights (`--config.vocabulary.tokenizer` is not needed). `:smoke`
runs two steps of a tiny model on any machine.
"""

from ml_collections import ConfigDict

from agent_jax.config import presets


def _data(config: presets.Draft) -> None:
    joints = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    config.vocabulary.blocks = ("iafm", "my_robot")  # the pre-training's, and one for the actions of this robot
    config.data.domains = {"my_robot": presets.domain(
        path="my_data",  # what prepare wrote
        cameras=("steps/observation/front", "steps/observation/wrist"),
        window=4, stride=4,  # steps that the agent sees
        max_text=64,  # tokens of the instruction
        action_spec=presets.arm_spec("my_robot", names=joints, bounds="quantiles", rate_hz=30.0, absolute=True))}


def _main(config: presets.Draft) -> None:
    presets.finetune(config, steps=20_000, learning_rate=1e-4, mask_ratio=0.5)


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "", "lora", "scratch" or "smoke"."""
    return presets.build(variant, {
        "": [_data, _main],
        "lora": [_data, _main, presets.lora],
        "scratch": [_data, presets.from_scratch],
        "smoke": [_data, _main, presets.finetune_smoke],
    })
