"""BabyAI: gather demonstrations from the simulator's own bot, train the agent on them, watch it act. 2 CPU cores.

    python -m agent_jax.train --config configs/babyai.py

Variants: `:long` trains for hours; `:smoke` goes through everything in a few steps and episodes, and learns nothing.
"""

from ml_collections import ConfigDict

from agent_jax import presets


def _main(config: presets.Draft) -> None:
    config.vocabulary.tokenizer = "bytes"  # needs no files, and "go to the purple ball" is 22 tokens
    config.vocabulary.blocks = ("babyai",)

    # One patch for each of the 7 x 7 tiles the agent sees.
    presets.small_model(config, image_size=56, patch_size=8, width=96, heads=4, vision_depth=2, language_depth=3,
                        positions=256)  # 4 x (50 visual tokens + 3 action tokens) + 32 of the instruction
    # Rows are looked up far more often than they are trained; at OPT's 0.02 the first 1,000 steps are lost.
    config.model.language.token_std = 0.5
    config.model.language.position_std = 0.5

    levels = {"GoToLocal": 24_000, "GoToObj": 2_000}
    config.data.demonstrations.environment = "babyai"
    config.data.demonstrations.episodes = levels
    config.data.demonstrations.validation_episodes = 200
    config.data.demonstrations.image_size = 56
    # No path: the demonstrations of this run. Episodes average 5 steps: windows overlap, so that every step has a past.
    config.data.domains = {"babyai": presets.domain(window=4, stride=2, max_text=32)}

    config.optimizer.learning_rate = 1e-3
    config.optimizer.end_learning_rate = 1e-5
    config.optimizer.clip_norm = 1.0
    config.train.steps = 3_000
    config.train.batch_size = 16
    config.train.validate_every = 500
    config.checkpoint.every = 500

    config.closed_loop.environment = "babyai"
    config.closed_loop.episodes = dict.fromkeys(levels, 200)


def _long(config: presets.Draft) -> None:
    presets.small_model(config, image_size=56, patch_size=8, width=128, heads=4, vision_depth=3, language_depth=4,
                        positions=256)
    config.data.demonstrations.episodes = {"GoToLocal": 200_000, "GoToObj": 10_000}
    config.train.steps = 60_000
    config.train.batch_size = 32
    config.train.validate_every = 2_000
    config.checkpoint.every = 2_000


def _smoke(config: presets.Draft) -> None:
    presets.tiny_run(config, steps=4)
    config.train.batch_size = 4
    config.data.demonstrations.episodes = {"GoToObj": 12}
    config.data.demonstrations.validation_episodes = 4
    config.data.demonstrations.processes = 1
    config.closed_loop.episodes = {"GoToObj": 4}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "", "long" or "smoke"."""
    return presets.build(variant, {"": [_main], "long": [_main, _long], "smoke": [_main, _smoke]})
