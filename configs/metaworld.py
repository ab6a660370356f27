"""Meta-World: gather demonstrations from its scripted policies, train a small agent on them, watch it act. 2 CPU cores.

    python -m agent_jax.train --config configs/metaworld.py

On 2 cores of an AMD EPYC beside other programs (2026-11-30) the job took 14 minutes, and at most 7.2 GiB, which is
while it acts. Greedy success of 50 episodes is 98 to 100% in each of the four tasks, random actions 0 to 2%.
benchmarks/results/ has the table.

Variants: `:smoke` goes through everything in a few steps, and learns nothing.
"""

from ml_collections import ConfigDict

from agent_jax.actions.simulators import METAWORLD, METAWORLD_STATE
from agent_jax.config import presets

# Episodes by task. At 16 actions a second (each held for 5 steps of the simulator) they take 15 to 20 steps.
TASKS = {
    "button-press-topdown@16hz": 200,
    "door-open@16hz": 200,
    "drawer-open@16hz": 200,
    "window-close@16hz": 200,
}


def _main(config: presets.Draft) -> None:
    presets.small_model(config, image_size=64, patch_size=8, width=96, heads=4, vision_depth=2, language_depth=3,
                        positions=256)  # 2 x (65 visual tokens + 6 state tokens + 6 action tokens) + 40
    presets.simulator_agent(config, "metaworld", image_size=64)

    config.data.demonstrations.episodes = TASKS
    config.data.demonstrations.validation_episodes = 10
    # Pushed off its path, a scripted policy shows how to come back: closed loop drifts, and 15 steps leave little time.
    config.data.demonstrations.noise = 0.1
    # No path: the demonstrations of this run. Two steps tell how the hand moves.
    config.data.domains = {"metaworld": presets.domain(
        action_spec=METAWORLD.to_dict(), state_spec=METAWORLD_STATE.to_dict(), window=2, stride=2, max_text=40,
        fixed_positions=True)}

    config.optimizer.learning_rate = 2e-3
    config.optimizer.end_learning_rate = 2e-5
    config.train.steps = 1_500
    config.train.validate_every = 500
    config.checkpoint.every = 500

    config.closed_loop.episodes = dict.fromkeys(TASKS, 50)


def _smoke(config: presets.Draft) -> None:
    presets.simulator_smoke(config, "drawer-close@16hz", episodes=4, validation_episodes=2, acting=2)


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "smoke"."""
    return presets.build(variant, {"": [_main], "smoke": [_main, _smoke]})
