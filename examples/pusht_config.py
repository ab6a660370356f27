"""Collect demonstrations of touching the T, train a small agent on them, and evaluate it. 2 CPU cores.

300 steps show the whole process, but the agent is then no better than random actions; raise config.train.steps.

    python -m agent_jax.train --config examples/pusht_config.py

With human recordings of the published task, prepared by `python -m agent_jax.data prepare`
(docs/guides/environments.md):

    python -m agent_jax.train --config examples/pusht_config.py:push --config.data.domains.pusht.path=DIR
"""

from pathlib import Path

from ml_collections import ConfigDict

from agent_jax.config import presets
from agent_jax.envs import load

PUSHT = str(Path(__file__).with_name("pusht.py"))


def _main(config: presets.Draft) -> None:
    environment = load(PUSHT)
    assert environment.STATE_SPEC is not None
    presets.small_model(config, image_size=64, patch_size=8, width=96, heads=4, vision_depth=1, language_depth=2,
                        positions=256)  # 2 x (65 visual tokens + 4 state tokens + 4 action tokens) + 40
    presets.simulator_agent(config, PUSHT, image_size=64)
    config.vocabulary.blocks = ("pusht",)  # the tokens of its specs

    config.data.demonstrations.episodes = {"touch-t": 400}
    config.data.demonstrations.validation_episodes = 20
    # No path: the demonstrations of this run. Two steps show the disc's motion.
    config.data.domains = {"pusht": presets.domain(
        action_spec=environment.ACTION_SPEC.to_dict(), state_spec=environment.STATE_SPEC.to_dict(), window=2, stride=2,
        max_text=40, fixed_positions=True)}

    config.optimizer.learning_rate = 2e-3
    config.optimizer.end_learning_rate = 2e-5
    config.train.steps = 300
    config.train.validate_every = 100
    config.closed_loop.episodes = {"touch-t": 50}


def _push(config: presets.Draft) -> None:
    config.data.demonstrations.environment = ""  # human recordings
    config.closed_loop.episodes = {"push-t": 50}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "" or "push"."""
    return presets.build(variant, {"": [_main], "push": [_main, _push]})
