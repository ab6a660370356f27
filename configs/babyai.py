"""BabyAI: gather demonstrations from the simulator's own bot, train the agent on them, watch it act. 2 CPU cores.

    python -m agent_jax.train --config configs/babyai.py

On 2 cores of an AMD EPYC (AVX-512): 4.1 minutes and 1.1 GiB; success on GoToLocal 97.5, 99.0 and 98.5% greedy, 99.5,
100 and 99.5% sampled in three runs, of 200 episodes each (2026-11-30; benchmarks/results/ has the tables).

Variant: `:smoke` goes through everything in a few steps, and learns nothing.
"""

from ml_collections import ConfigDict

from agent_jax.config import presets

# Episodes by level; the run reads each about once. GoToLocal is the goal: 8 objects in a room of 6 x 6. With 2
# objects it is much plainer that the instruction tells them apart, so the agent learns sooner what to look for. A few
# such episodes are enough: the ways around 8 objects take longest to learn.
LEVELS = {
    "GoToLocal": 28_000,
    "GoToLocalS8N2": 3_000,
    "GoToLocalS6N2": 1_500,
    "GoToLocalS5N2": 1_000,
    "GoToRedBallGrey": 1_000,
    "GoToObj": 1_000,
}


def _main(config: presets.Draft) -> None:
    # One patch for each of the 7 x 7 tiles the agent sees, so one block is enough to tell what is in them.
    presets.small_model(config, image_size=56, patch_size=8, width=64, heads=2, vision_depth=1, language_depth=3,
                        positions=256)  # 4 x (50 visual tokens + 3 action tokens) + 32 of the instruction
    presets.simulator_agent(config, "babyai", image_size=56)
    # These three make the agent read sooner which object is meant (benchmarks/results/README.md).
    config.model.language.heads = 4
    config.model.language.token_std = 0.25
    config.model.language.position_std = 0.2

    config.data.demonstrations.episodes = LEVELS
    config.data.demonstrations.validation_episodes = 100
    # No noise: every state is like some first state here, and undoing noise is a habit that greedy acting cannot stop.
    config.data.demonstrations.noise = 0.0
    # No path: the demonstrations of this run.
    config.data.domains = {"babyai": presets.domain(window=4, stride=4, max_text=24, fixed_positions=True)}

    config.optimizer.learning_rate = 3e-3
    config.optimizer.end_learning_rate = 3e-5
    config.train.steps = 2_600
    config.train.validate_every = 650
    config.checkpoint.every = 650

    config.closed_loop.episodes = {level: 200 if level == "GoToLocal" else 100 for level in LEVELS}


def _smoke(config: presets.Draft) -> None:
    presets.simulator_smoke(config, "GoToObj", episodes=12, validation_episodes=4, acting=4)


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "smoke"."""
    return presets.build(variant, {"": [_main], "smoke": [_main, _smoke]})
