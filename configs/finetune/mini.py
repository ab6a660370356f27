"""Fine-tune the agent of configs/pretrain_mini.py to what it has not seen, on few data. 2 CPU cores.

    python -m agent_jax.train --config configs/pretrain_mini.py
    python -m agent_jax.train --config configs/finetune/mini.py:babyai --workdir runs/mini_babyai \
        --config.init.checkpoint=runs/pretrain_mini

Without `--config.init.checkpoint` the same agent is trained from scratch in the same steps. One run of each is in
benchmarks/results/mini.md; how much the pre-training helps takes several (docs/guides/study.md).

Variants: `:babyai` (the default) is another task of a simulator that the agent knows, PickupLoc, which names a place;
`:metaworld` likewise, window-close; `:vizdoom` likewise, GoTo2, which names one of two objects. `:pusht` is another
simulator with an ActionSpec of its own, a new block of the vocabulary (pip install gym-pusht). `:captions` learns
captions of video; from configs/pretrain_mini.py:images it grows the image encoder into one of video. `:smoke` is
`:babyai` in a few steps, and learns nothing.
"""

from pathlib import Path

from ml_collections import ConfigDict

from agent_jax.actions.simulators import METAWORLD, METAWORLD_STATE, VIZDOOM
from agent_jax.config import presets

_PUSHT = Path(__file__).resolve().parents[2] / "examples" / "pusht.py"


def _model(config: presets.Draft) -> None:
    presets.mini_agent(config)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.end_learning_rate = 2e-5
    config.train.steps = 400
    config.train.validate_every = config.checkpoint.every = 200


def _simulator(config: presets.Draft, environment: str, task: str, *, demonstrations: int, episodes: int = 100) -> None:
    config.data.demonstrations.environment = environment
    config.data.demonstrations.episodes = {task: demonstrations}
    config.data.demonstrations.validation_episodes = 25
    config.data.demonstrations.image_size = config.model.vision.image_size
    config.closed_loop.environment = environment
    config.closed_loop.episodes = {task: episodes}


def _babyai(config: presets.Draft) -> None:
    config.vocabulary.blocks = ("babyai",)
    config.data.domains = {"babyai": presets.domain(window=4, stride=4, max_text=64, fixed_positions=True)}
    _simulator(config, "babyai", "PickupLoc", demonstrations=1_000)


def _metaworld(config: presets.Draft) -> None:
    config.vocabulary.blocks = ("metaworld",)
    config.data.domains = {"metaworld": presets.domain(
        action_spec=METAWORLD.to_dict(), state_spec=METAWORLD_STATE.to_dict(), window=2, stride=2, max_text=40,
        fixed_positions=True)}
    _simulator(config, "metaworld", "window-close@16hz", demonstrations=50, episodes=50)
    config.data.demonstrations.noise = 0.1


def _vizdoom(config: presets.Draft) -> None:
    config.vocabulary.blocks = ("vizdoom",)
    config.data.domains = {"vizdoom": presets.domain(action_spec=VIZDOOM.to_dict(), window=3, stride=3, max_text=32,
                                                     fixed_positions=True)}
    _simulator(config, "vizdoom", "GoTo2", demonstrations=1_000)
    config.data.demonstrations.noise = 0.1


def _pusht(config: presets.Draft) -> None:
    from agent_jax.envs import load  # imports the simulator

    pusht = load(str(_PUSHT))
    assert pusht.STATE_SPEC is not None
    config.vocabulary.blocks = ("pusht",)
    config.data.domains = {"pusht": presets.domain(
        action_spec=pusht.ACTION_SPEC.to_dict(), state_spec=pusht.STATE_SPEC.to_dict(), window=2, stride=2, max_text=40,
        fixed_positions=True)}
    _simulator(config, str(_PUSHT), "touch-t", demonstrations=400)


def _captions(config: presets.Draft) -> None:
    config.model.vision.temporal_attention = True  # the 9 images are one clip
    config.vocabulary.blocks = ()
    config.data.domains = {"clips": presets.domain(layout="answer", window=9, stride=9, max_text=48, max_answer=40,
                                                   video=True)}
    config.data.demonstrations.environment = "clips"
    config.data.demonstrations.episodes = {"caption": 1_000}
    config.data.demonstrations.validation_episodes = 100
    config.data.demonstrations.image_size = config.model.vision.image_size
    config.loss.language = 1.0
    config.evaluation.rows = 100


def _smoke(config: presets.Draft) -> None:
    presets.simulator_smoke(config, "PickupLoc", episodes=4, validation_episodes=2, acting=2)


def get_config(variant: str = "babyai") -> ConfigDict:
    """The config of a variant: "babyai", "metaworld", "vizdoom", "pusht", "captions" or "smoke"."""
    return presets.build(variant, {
        "babyai": [_model, _babyai],
        "metaworld": [_model, _metaworld],
        "vizdoom": [_model, _vizdoom],
        "pusht": [_model, _pusht],
        "captions": [_model, _captions],
        "smoke": [_model, _babyai, _smoke],
    })
