"""ViZDoom: gather demonstrations of going to a named object, train a small agent on them, watch it act. 2 CPU cores.

    python -m agent_jax.train --config configs/vizdoom.py

On 2 cores of an AMD EPYC beside other programs (2026-11-30): 20 minutes and 1.2 GiB. Success on GoTo1 100% greedy of
100 episodes (random 12%), on GoTo2 85.5% greedy and 84.0% sampled of 200 (random 7%, random walk 10%; walking to either
of the two objects 50%). benchmarks/results/ has the table.

Variants: `:smoke` goes through everything in a few steps, and learns nothing.
"""

from ml_collections import ConfigDict

from agent_jax.actions.simulators import VIZDOOM
from agent_jax.config import presets

# Episodes by task, of 13 steps. GoTo2 is the goal; with one object it is plain what the buttons are for.
TASKS = {"GoTo2": 8_000, "GoTo1": 1_000}


def _main(config: presets.Draft) -> None:
    presets.small_model(config, image_size=64, patch_size=8, width=96, heads=4, vision_depth=1, language_depth=3,
                        positions=320)  # 3 x (65 visual tokens + at most 8 action tokens) + 32
    presets.simulator_agent(config, "vizdoom", image_size=64)

    config.data.demonstrations.episodes = TASKS
    config.data.demonstrations.validation_episodes = 100
    config.data.demonstrations.noise = 0.1  # shows what to do where the player has strayed
    # No path: the demonstrations of this run. Three steps tell which way the player has been turning.
    config.data.domains = {"vizdoom": presets.domain(
        action_spec=VIZDOOM.to_dict(), window=3, stride=3, max_text=32, fixed_positions=True)}

    config.optimizer.learning_rate = 3e-3
    config.optimizer.end_learning_rate = 3e-5
    config.train.steps = 4_000
    config.train.validate_every = 1_000
    config.checkpoint.every = 1_000

    config.closed_loop.episodes = {"GoTo2": 200, "GoTo1": 100}


def _smoke(config: presets.Draft) -> None:
    presets.simulator_smoke(config, "GoTo1", episodes=8, validation_episodes=2, acting=2)


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "smoke"."""
    return presets.build(variant, {"": [_main], "smoke": [_main, _smoke]})
