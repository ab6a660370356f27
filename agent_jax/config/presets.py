"""What config files are made of: changes to the default config, applied in order.

    def get_config(variant: str = "") -> ConfigDict:
        return build(variant, {"": [_main], "smoke": [_main, _smoke]})

A change is a function that sets fields of an unlocked ConfigDict. They live in the package, not in configs/, because a
config file is executed by its path, from whatever directory, and can import nothing that lies beside it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from agent_jax.actions.arms import arm_spec, state_spec
from agent_jax.actions.datasets import BLEEDING_EDGE, CALVIN, LANGUAGE_TABLE, LANGUAGE_TABLE_STATE, MINECRAFT
from agent_jax.config.load import from_config_dict, to_config_dict
from agent_jax.config.schema import Config, DomainConfig

Draft = Any  # an unlocked ConfigDict, whose annotations take every field for a number or a string
Change = Callable[[Draft], None]

__all__ = ["Change", "Draft", "arm_spec", "build", "clip_l14", "code", "domain", "finetune", "finetune_smoke",
           "from_scratch", "lora", "mini_agent", "opt_1_3b", "opt_6_7b", "paper", "paper_augmentation", "paper_domain",
           "pretraining", "replay", "simulator_agent", "simulator_smoke", "small_agent", "small_model", "state_spec",
           "tiny_run"]


def build(variant: str, variants: Mapping[str, Sequence[Change]]) -> ConfigDict:
    """The config of a file's variant: the default one with the variant's changes, checked and locked.

    Args:
        variant: what stands behind the colon in `--config FILE:VARIANT`; "" where nothing does.
        variants: the changes of each variant.

    Raises:
        ValueError: for a variant that the file does not have, with those it has; for values that contradict each other.
    """
    if variant not in variants:
        near = difflib.get_close_matches(variant, variants, n=1)
        known = ", ".join(name if name else "'' (no colon)" for name in variants)
        raise ValueError(f"config variant: found {variant!r}, expected one of {known}"
                         + (f"; did you mean {near[0]!r}?" if near else ""))
    config: Draft = to_config_dict(Config()).unlock()
    for change in variants[variant]:
        change(config)
    from_config_dict(config)
    return config.lock()


def domain(**fields: Any) -> Draft:
    """A data set for `config.data.domains`: the default fields with those given here.

    Raises:
        TypeError: for a field that a domain does not have.
    """
    return to_config_dict(DomainConfig(**fields)).unlock()


def paper_augmentation(config: Draft) -> None:
    """Changes of colour of the paper's pre-training; it names none for fine-tuning."""
    config.data.augmentation.brightness = (0.7, 1.4)
    config.data.augmentation.saturation = (0.7, 1.4)
    config.data.augmentation.hue = 0.05


PAPER_DOMAINS = ("language_table", "calvin", "minecraft", "bleeding_edge")


def paper_domain(name: str) -> Draft:
    """A data set of the paper's pre-training, cut into the paper's windows.

    Args:
        name: one of `PAPER_DOMAINS`.
    """
    robot, game = {"window": 4, "stride": 4}, {"window": 9, "stride": 9}
    fields: Mapping[str, Mapping[str, Any]] = {
        "language_table": {"instruction": "steps/observation/instruction", "action_spec": LANGUAGE_TABLE.to_dict(),
                           "state_spec": LANGUAGE_TABLE_STATE.to_dict(), **robot},
        # The bins of its state follow its statistics, so the data set brings them.
        "calvin": {"action_spec": CALVIN.to_dict(), **robot},
        "minecraft": {"action_spec": MINECRAFT.to_dict(), **game},
        "bleeding_edge": {"action_spec": BLEEDING_EDGE.to_dict(), **game},
    }
    return domain(**fields[name])


def pretraining(config: Draft) -> None:
    """The paper's pre-training on its four data sets, in bfloat16.

    Where the data and OPT's tokenizer lie is left to flags. Of Bleeding Edge only a sample is public: 1,024 clips of 61
    s, at most 68,608 windows. `weight=3.74` gives it the paper's share, `config.data.leave_out` leaves it out.
    """
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    # All layers one after another: in a scan, writing and reading its stacked arrays is a quarter of what a step moves
    # through memory, which bounds it. In return it takes a third to a half more memory, and longer to compile.
    config.model.unroll = 12
    config.vocabulary.tokenizer = "opt_tokenizer"  # a directory with OPT's vocab.json and merges.txt: pass yours
    # Weights of 1: plain concatenation, as in the paper. Windows and their number are the paper's.
    # 1,233,659, 360,566, 525,309 and 256,867 windows
    config.data.domains = {name: paper_domain(name) for name in PAPER_DOMAINS}
    paper_augmentation(config)
    config.data.workers = 16
    config.data.prefetch = 8
    config.train.batch_size = 768  # 192 GPUs of 4, by the paper's compute
    config.train.steps = 309_500  # 100 epochs of 2,376,401 windows
    config.train.validate_every = 2_000
    config.train.validation_batches = 16
    config.checkpoint.every = 2_000


def finetune(config: Draft, *, steps: int, batch_size: int = 64, learning_rate: float = 1e-4,
             mask_ratio: float = 0.75, patience: int = 5) -> None:
    """Fine-tuning of the full-size agent on a GPU or TPU, in bfloat16: validated 20 times, the best step kept.

    The parameters come from a flag: --config.init.checkpoint=WORKDIR, a pre-trained agent, or
    --config.init.pretrained.vision and .language, CLIP and OPT. So does OPT's tokenizer.

    Args:
        config: changed in place; its domains come before or after.
        steps: updates at most.
        batch_size: rows of an update. If they do not fit, config.train.rows_per_device splits them.
        learning_rate: the highest; it decays to a twentieth, as in the paper.
        mask_ratio: of the masked autoencoder; the paper fine-tunes on robots with 0.5.
        patience: validations without a new best after which the run ends; 0: never.
    """
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.model.mae.mask_ratio = mask_ratio
    config.vocabulary.tokenizer = "opt_tokenizer"  # a directory with OPT's vocab.json and merges.txt: pass yours
    config.optimizer.learning_rate = learning_rate
    config.optimizer.end_learning_rate = learning_rate / 20
    config.train.steps, config.train.batch_size = steps, batch_size
    config.train.validate_every = config.checkpoint.every = max(1, steps // 20)
    config.train.validation_batches = 16
    config.train.patience = patience
    config.data.workers = 4


def lora(config: Draft, *, rank: int = 8, scale: float = 2.0,
         patterns: Sequence[str] = ("(vision|language)/blocks/(temporal_)?attention/.*", "language/token_embedding"),
         train: Sequence[str] = ()) -> None:
    """Fine-tune by low-rank adapters alone, a few MB; comes after `finetune`.

    Args:
        config: changed in place.
        rank: of the adapters.
        scale: of their product.
        patterns: paths of the kernels that they adapt; the token table has to be among them, or in `train`, if the
            vocabulary has tokens that the pre-trained agent did not know.
        train: patterns of parameters that are trained as a whole besides, such as "classifier/.*".
    """
    config.lora.patterns, config.lora.rank, config.lora.scale = tuple(patterns), rank, scale
    config.optimizer.freeze = (f"(?!{'|'.join(('lora/', *train))}).*",)


def replay(config: Draft, weight: float = 0.1) -> None:
    """Mix in the paper's pre-training data, so that the agent forgets less; comes after the config's own domains.

    Args:
        config: changed in place.
        weight: how many times each of their windows is seen in an epoch; `config.data.leave_out` leaves some out.
    """
    for name in PAPER_DOMAINS:
        if name not in config.data.domains:
            config.data.domains[name] = paper_domain(name)
            config.data.domains[name].weight = weight


def finetune_smoke(config: Draft) -> None:
    """Two steps of a tiny model on any machine, on the data of the config: does everything fit together?"""
    tiny_run(config)
    config.model.dtype, config.model.remat = "float32", "none"
    config.vocabulary.tokenizer = "bytes"
    for entry in config.data.domains.values():
        entry.max_text, entry.max_answer = 128, 128  # a byte a token
    config.train.batch_size = 2
    config.data.workers = 0


def clip_l14(config: Draft) -> None:
    """CLIP ViT-L/14 as the encoder: 1 + 256 visual tokens an image, so games are cut into windows of 7 images."""
    vision = config.model.vision
    vision.patch_size, vision.width, vision.depth, vision.heads, vision.mlp_width = 14, 1024, 24, 16, 4096
    config.model.unroll = 1  # twice the layers, and bound by their products
    for game in ("minecraft", "bleeding_edge"):
        config.data.domains[game].window = config.data.domains[game].stride = 7  # 9 take 2,600 of OPT's 2,048 positions


def opt_1_3b(config: Draft) -> None:
    """OPT-1.3B as the language model (Zhang et al., 2022, table 1)."""
    _opt(config, width=2048, depth=24, heads=32)


def opt_6_7b(config: Draft) -> None:
    """OPT-6.7B as the language model (Zhang et al., 2022, table 1)."""
    _opt(config, width=4096, depth=32, heads=32)


def _opt(config: Draft, *, width: int, depth: int, heads: int) -> None:
    language = config.model.language
    language.width, language.depth, language.heads, language.mlp_width = width, depth, heads, 4 * width


def paper(config: Draft) -> None:
    """Where paper and authors' code differ, the paper: sin-cos positions, eq. 1 and eq. 5 as they are written."""
    config.model.vision.positions = "sincos"
    config.model.visual_tokens = "all"
    config.loss.form = "eq5"


def code(config: Draft) -> None:
    """Where paper and authors' code differ, the code: CLIP's table, one masked pass, means weighted 2 and 1."""
    config.model.vision.positions = "clip"
    config.model.visual_tokens = "visible"
    config.loss.form = "mean"
    config.loss.token = 2.0
    config.loss.mae = 1.0


def small_model(config: Draft, *, image_size: int, patch_size: int, width: int, heads: int, vision_depth: int,
                language_depth: int, positions: int) -> None:
    """An agent to be trained from scratch on little data: one width throughout, a shallow decoder, no dropout.

    Args:
        config: changed in place.
        image_size: pixels.
        patch_size: pixels.
        width: of encoder, language model and decoder; MLPs are twice as wide, half of what is usual, for speed.
        heads: of all three.
        vision_depth: blocks of the encoder.
        language_depth: blocks of the language model.
        positions: the longest row, in slots.
    """
    vision, language, mae = config.model.vision, config.model.language, config.model.mae
    vision.image_size, vision.patch_size = image_size, patch_size
    for part, depth in ((vision, vision_depth), (language, language_depth), (mae, 1)):
        part.width, part.heads, part.mlp_width, part.depth = width, heads, 2 * width, depth
        part.activation = "relu"  # cheaper than GELU on a CPU
    language.positions = positions
    language.dropout = 0.0


def simulator_agent(config: Draft, environment: str, *, image_size: int) -> None:
    """What small agents have in common that learn a simulator's tasks on a CPU; comes after `small_model`.

    Args:
        config: changed in place.
        environment: of the demonstrations and the closed loop; names the vocabulary block of its actions as well.
        image_size: pixels of what it shows.
    """
    small_agent(config)
    config.vocabulary.blocks = (environment,)

    config.data.demonstrations.environment = environment
    config.data.demonstrations.image_size = image_size
    config.closed_loop.environment = environment


def from_scratch(config: Draft, *, steps: int = 5_000, image_size: int = 64, patch_size: int = 8, width: int = 96,
                 heads: int = 4, vision_depth: int = 2, language_depth: int = 3, positions: int = 1024) -> None:
    """A small agent trained from scratch on one's own data, on a CPU; it needs no weights and no tokenizer.

    Args:
        config: changed in place; its domains come before or after.
        steps: updates.
        image_size: pixels; images of other sizes are resized.
        patch_size: pixels.
        width: of all parts.
        heads: of all parts.
        vision_depth: blocks of the encoder.
        language_depth: blocks of the language model.
        positions: the longest row, in slots: the text, and for each step an image's 1 + P tokens and the action's.
    """
    small_model(config, image_size=image_size, patch_size=patch_size, width=width, heads=heads,
                vision_depth=vision_depth, language_depth=language_depth, positions=positions)
    small_agent(config)
    config.optimizer.learning_rate = 2e-3  # a 6-DoF arm learnt nothing in 400 steps at the 1e-4 of pre-training
    config.optimizer.end_learning_rate = 2e-5
    config.train.steps = steps
    config.train.validate_every = config.checkpoint.every = max(1, steps // 5)


def small_agent(config: Draft) -> None:
    """Tokenizer, initial scale, loss weights and optimizer of a small agent trained from scratch on actions."""
    config.vocabulary.tokenizer = "bytes"  # needs no files, and "go to the yellow medikit" is 25 tokens

    config.model.mae.width = 32
    config.model.mae.mlp_width = 64
    config.model.unroll = 4
    # So that tokens and positions tell slots apart from the start; OPT's 0.02 is for long pre-training.
    config.model.language.token_std = 0.5
    config.model.language.position_std = 0.5

    # Nearly all of what there is to learn is in the few tokens of an action. The others must not drown them.
    config.loss.token = 1.0
    config.loss.language = 0.1
    config.loss.mae = 0.1

    config.optimizer.name = "muon"  # learns in a third of the steps that AdamW takes
    config.optimizer.b2 = 0.98
    config.optimizer.clip_norm = 1.0
    config.train.batch_size = 16
    config.train.log_every = 100


def mini_agent(config: Draft) -> None:
    """The model of configs/pretrain_mini.py, which configs/finetune/mini.py fine-tunes."""
    # 7 x 7 patches: one for each cell of BabyAI and of the clips. The longest row is a clip of 9 images with its texts.
    small_model(config, image_size=56, patch_size=8, width=64, heads=4, vision_depth=2, language_depth=3, positions=640)
    small_agent(config)
    config.optimizer.name = "adamw"  # as the figures of benchmarks/results/mini.md


def simulator_smoke(config: Draft, task: str, *, episodes: int, validation_episodes: int, acting: int) -> None:
    """All that such an agent's run does, in a few steps and episodes of one task.

    Args:
        config: changed in place.
        task: of the environment.
        episodes: demonstrated for training.
        validation_episodes: demonstrated for validation.
        acting: episodes acted at the end.
    """
    tiny_run(config, steps=4)
    config.train.batch_size = 4
    config.data.demonstrations.episodes = {task: episodes}
    config.data.demonstrations.validation_episodes = validation_episodes
    config.data.demonstrations.processes = 1
    config.closed_loop.episodes = {task: acting}


def tiny_run(config: Draft, *, steps: int = 2) -> None:
    """A model of a few thousand parameters and a run of a few steps: does everything hold together?"""
    small_model(config, image_size=56, patch_size=14, width=16, heads=2, vision_depth=1, language_depth=1,
                positions=config.model.language.positions)
    config.train.steps = steps
    config.train.log_every = 1
    config.train.validate_every = config.train.patience = 0
    config.train.validation_batches = 1
    config.checkpoint.every = 0
