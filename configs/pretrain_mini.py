"""Pre-training in miniature: a small agent learns three simulators, robot data and made-up video. 2 CPU cores.

    python -m agent_jax.train --config configs/pretrain_mini.py

It gathers demonstrations of BabyAI, Meta-World and ViZDoom and makes clips with captions, questions and classes
(agent_jax/envs/clips.py). Language-Table is read from `shared/data/language_table_oracle_mini/0.0.1`, next to the
checkout or in it; another place is given by --config.data.domains.language_table.path=DIR, and
--config.data.leave_out="('language_table',)" does without it, as without any other domain. The end of the run shows
success by simulator, and scores of answers and classes on held-out clips, each with its baseline.

Measured once (benchmarks/results/mini.md): 50 minutes on 2 cores once the demonstrations are gathered, 35 of them in
training steps, and at most 6.9 GiB, which is while it acts. Sampled success is 85 to 99% in BabyAI (random moves: 46 to
53%) and 44% in ViZDoom (random: 12%), greedy success 84 and 94% in Meta-World (random: 0%). It names the kind of the
object that moves in all held-out clips (the most frequent kind: 36%), and 42% of its texts about scenes that it has not
seen are right (the most frequent text: 27%). It does not learn directions, numbers and colours.

Variants: `:images` leaves out the clips, and with them temporal attention and classes: an agent of images, which
configs/finetune/mini.py:captions then grows into one of video. `:smoke` goes through everything in a few steps, and
learns nothing.
"""

from pathlib import Path

from ml_collections import ConfigDict

from agent_jax.actions import LANGUAGE_TABLE, LANGUAGE_TABLE_STATE
from agent_jax.actions.simulators import METAWORLD, METAWORLD_STATE, VIZDOOM
from agent_jax.config import presets

IMAGE_SIZE = 56
_STORE = "shared/data/language_table_oracle_mini/0.0.1"
_CHECKOUT = Path(__file__).resolve().parents[1]

# Episodes by task, in training and acted at the end.
EPISODES = {
    "babyai": {"GoToLocalS8N2": 4_000, "GoToLocalS6N2": 4_000, "GoToLocalS5N2": 4_000, "GoToObj": 3_000},
    "metaworld": {"button-press-topdown@16hz": 200, "door-open@16hz": 200},
    "vizdoom": {"GoTo1": 1_500},
}
ACTED = {"babyai": 100, "metaworld": 50, "vizdoom": 100}
NOISE = {"babyai": 0.0, "metaworld": 0.1, "vizdoom": 0.1}  # as in configs/babyai.py, metaworld.py and vizdoom.py
CLIPS = {"caption": 3_000, "which_object": 2_500, "which_way": 2_500, "how_many": 2_000, "which_first": 2_000}
CLASSES = {"caption": 3_000, "which_object": 3_000, "which_way": 3_000}  # clips of one, three and two objects


def _demonstrate(domain: presets.Draft, environment: str, episodes: dict[str, int], validation: int) -> None:
    demonstrations = domain.demonstrations
    demonstrations.environment, demonstrations.episodes = environment, episodes
    demonstrations.validation_episodes, demonstrations.noise = validation, NOISE.get(environment, 0.0)
    demonstrations.image_size = IMAGE_SIZE


def _main(config: presets.Draft) -> None:
    presets.mini_agent(config)
    config.model.vision.temporal_attention = True
    config.model.classes = 3
    config.vocabulary.blocks = ("iafm", "babyai", "metaworld", "vizdoom")
    clip = {"window": 9, "stride": 9, "max_text": 48, "video": True}
    store = next((root / _STORE for root in (_CHECKOUT, *_CHECKOUT.parents) if (root / _STORE).exists()),
                 _CHECKOUT.parent / _STORE)
    config.data.domains = {
        "babyai": presets.domain(window=4, stride=4, max_text=32, fixed_positions=True),
        "metaworld": presets.domain(action_spec=METAWORLD.to_dict(), state_spec=METAWORLD_STATE.to_dict(), weight=4.0,
                                    window=2, stride=2, max_text=40, fixed_positions=True),
        "vizdoom": presets.domain(action_spec=VIZDOOM.to_dict(), weight=1.5, window=3, stride=3, max_text=32,
                                  fixed_positions=True),
        "language_table": presets.domain(
            path=str(store), instruction="steps/observation/instruction", action_spec=LANGUAGE_TABLE.to_dict(),
            state_spec=LANGUAGE_TABLE_STATE.to_dict(), window=4, stride=4, max_text=96),
        # Their texts, and of others the kind of the object that moves.
        "clips": presets.domain(layout="answer", max_answer=40, **clip),
        "clip_classes": presets.domain(layout="label", **clip),
    }
    for name, episodes in EPISODES.items():
        _demonstrate(config.data.domains[name], name, episodes, 25)
    _demonstrate(config.data.domains["clips"], "clips", CLIPS, 100)
    _demonstrate(config.data.domains["clip_classes"], "clips", CLASSES, 100)

    config.optimizer.learning_rate = 3e-3
    config.optimizer.end_learning_rate = 3e-5
    config.train.steps = 2_000
    config.train.validate_every = 500
    config.checkpoint.every = 500

    config.closed_loop.domains = {name: dict.fromkeys(episodes, ACTED[name]) for name, episodes in EPISODES.items()}
    config.evaluation.rows = 500


def _images(config: presets.Draft) -> None:
    config.data.leave_out = ("clips", "clip_classes")
    config.model.vision.temporal_attention = False
    config.model.classes = 0


def _smoke(config: presets.Draft) -> None:
    presets.tiny_run(config, steps=4)
    config.train.batch_size = 4
    config.train.validation_batches = 8  # one of them need not have every domain
    tasks = {"babyai": "GoToObj", "metaworld": "drawer-close@16hz", "vizdoom": "GoTo1"}
    for name, entry in config.data.domains.items():
        if not entry.path:
            entry.demonstrations.episodes = {tasks[name]: 4} if name in tasks else {"caption": 4, "which_way": 4}
            entry.demonstrations.validation_episodes = 2
            entry.demonstrations.processes = 1
    config.closed_loop.domains = {name: {task: 2} for name, task in tasks.items()}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant: "", "images" or "smoke"."""
    return presets.build(variant, {"": [_main], "images": [_main, _images], "smoke": [_main, _smoke]})
