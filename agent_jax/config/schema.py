"""Every field of a run, as frozen dataclasses.

The defaults are the paper's model and recipe; a number carries its reason or source. load.py makes a `Config` from a
config file, and checks.py refuses values that contradict each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """CLIP vision transformer; the defaults are ViT-B/16."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: Literal["quick_gelu", "gelu", "relu"] = "quick_gelu"
    layer_norm_eps: float = 1e-5  # HF CLIP; Flax defaults to 1e-6.
    positions: Literal["sincos", "clip"] = "sincos"  # fixed 2-D sin-cos (paper), or CLIP's trainable table
    temporal_attention: bool = False  # divided space-time attention, for video-level domains
    temporal_order: Literal["after", "before"] = "after"  # the spatial attention: after (paper), before (authors' code)

    @property
    def patches(self) -> int:
        """P, patches of an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """OPT of a pre-LayerNorm size; the defaults are OPT-125M."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: Literal["relu", "gelu"] = "relu"
    layer_norm_eps: float = 1e-5  # HF OPT; Flax defaults to 1e-6.
    positions: int = 2048  # rows of the position table, less its offset of 2
    dropout: float = 0.1  # OPT as shipped; 0 in small models trained from scratch
    vocabulary_size: int = 0  # K before padding; 0: filled in from the vocabulary
    vocabulary_multiple: int = 128  # the table is padded to a multiple: the tensor axis must divide it
    token_std: float = 0.02  # initial token embeddings (OPT's own)
    position_std: float = 0.02  # initial position embeddings

    @property
    def vocabulary_rows(self) -> int:
        """K, rows of the token table."""
        return -(-self.vocabulary_size // self.vocabulary_multiple) * self.vocabulary_multiple


@dataclasses.dataclass(frozen=True)
class MaeConfig:
    """The masked-autoencoder decoder (sizes of the authors' code)."""

    width: int = 768
    depth: int = 5
    heads: int = 16
    mlp_width: int = 3072
    activation: Literal["gelu", "relu"] = "gelu"
    layer_norm_eps: float = 1e-5
    mask_ratio: float = 0.75  # share of patches hidden; 0.5 in the paper's robotics fine-tuning


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The agent: encoder, connector, decoder, and what the language model sees of an image in training."""

    vision: VisionConfig = VisionConfig()
    language: LanguageConfig = LanguageConfig()
    mae: MaeConfig = MaeConfig()
    visual_tokens: Literal["all", "visible"] = "all"  # all: eq. 1, a second, unmasked encoder pass; visible: one pass
    dtype: Literal["float32", "bfloat16"] = "float32"  # of matmuls; parameters, softmax, norms and losses are f32
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes: nothing, all but matmuls, all
    attention: Literal["auto", "xla", "cpu", "cudnn", "splash"] = "auto"  # models/attention_kernels.py
    classes: int = 0  # of a clip, told by a linear head on its CLS for domains of the layout "label"; 0: no head
    unroll: int = 1  # layers compiled as one piece of the scan; all of them (12): on GPU and TPU a quarter less traffic


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """Text and action ids."""

    tokenizer: str = "bytes"  # "bytes", or a directory with OPT's vocab.json and merges.txt, or any tokenizer.json
    # Blocks of action and state ids after the text, in order: "iafm", "babyai", or those that the specs of the domains
    # name, which hold the tokens of these specs (actions/declarations.py).
    blocks: tuple[str, ...] = ("iafm",)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the three losses are joined (models/losses.py)."""

    form: Literal["mean", "eq5"] = "mean"
    token: float = 2.0  # weight of the joint language-and-action mean in the `mean` form (authors' code)
    language: float = 1.0  # weight of a language target
    action: float = 1.0  # weight of an action target
    mae: float = 1.0
    label: float = 1.0  # weight of the mean cross-entropy of the class labels


@dataclasses.dataclass(frozen=True)
class DemonstrationsConfig:
    """Expert episodes gathered from a simulator into the store before training, once."""

    environment: str = ""  # "babyai", or one of your own, as "pusht.py"; empty: nothing is gathered
    episodes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # episodes by level, in training
    validation_episodes: int = 0  # of each level, from other seeds
    noise: float = 0.0  # probability of a random action in the expert's place; such steps are not imitated
    image_size: int = 56  # pixels; 7 x 7 tiles in BabyAI
    seed: int = 0
    processes: int = 2


@dataclasses.dataclass(frozen=True)
class DomainConfig:
    """One data set: where it lies, what its fields are called, how it is cut into windows."""

    path: str = ""  # directory of the data set: the one that holds dataset_info.json and features.json
    # Of a domain without a path: the data set that is gathered for it; environment "": config.data.demonstrations
    demonstrations: DemonstrationsConfig = DemonstrationsConfig()
    weight: float = 1.0  # how many times each of its windows is seen in an epoch; 1: plain concatenation (paper)
    layout: Literal["actions", "answer", "label"] = "actions"  # what is predicted: actions, a text, or a clip's class
    cameras: tuple[str, ...] = ("steps/observation/rgb",)  # images of a step, in this order
    instruction: str = "instruction"  # of an episode or, below steps/, of a step: text, or UTF-8 codes padded with 0
    action_spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # ActionSpec.to_dict(); {}: the data's own
    state_spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # StateSpec.to_dict(); {}: the data's own
    window: int = 4  # M, time steps of a sample: 4 in robotics, 9 in games (paper)
    stride: int = 4  # steps between the starts of windows; equal to `window`: consecutive chunks (paper)
    actions_per_image: int = 1  # k: only every k-th step of a window has images and state; k actions follow
    sampling: Literal["consecutive", "random"] = "consecutive"  # starts: every `stride`, or others at every turn
    max_text: int = 32  # longest instruction in tokens, </s> included
    answer: str = "answer"  # layout "answer": the field of the caption, or of the answer to the instruction
    max_answer: int = 64  # layout "answer": longest answer in tokens, </s> included
    label: str = "label"  # layout "label": the field of the class, 0 to config.model.classes - 1
    video: bool = False  # a window's images form one clip a camera: temporal attention, tube masks, one CLS
    fixed_positions: bool = False  # steps take the positions from max_text on, however long the instruction is
    train_split: str = "train"
    validation_split: str = "test"


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of colour in training, one draw for all images of a row; off by default."""

    brightness: tuple[float, ...] = ()  # least and greatest factor; the paper's pre-training: (0.7, 1.4)
    saturation: tuple[float, ...] = ()  # likewise
    hue: float = 0.0  # greatest turn to either side, as a share of the colour circle; the paper's: 0.05


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data sets, by name, and how they are read."""

    domains: Mapping[str, DomainConfig] = dataclasses.field(default_factory=dict)
    leave_out: tuple[str, ...] = ()  # names of domains that the run does not use, as if the config had none of them
    demonstrations: DemonstrationsConfig = DemonstrationsConfig()  # of domains without a path or their own
    frames_per_row: int = 0  # F, images of a row; short windows share one; 0: as many as the longest window has
    augmentation: AugmentationConfig = AugmentationConfig()
    out_of_bounds: float = 0.01  # largest share of steps with a value beyond its spec's bounds; 1: unchecked
    directory: str = "~/.cache/agent_jax/data"  # where demonstrations are gathered, and found again
    workers: int = 0  # loader processes; 0: a thread of the main process
    prefetch: int = 4  # batches made ahead

    @property
    def declared_specs(self) -> list[Mapping[str, Any]]:
        """The specs that the domains declare, in the order of the domains' names, actions before states."""
        domains = [entry for _, entry in sorted(self.domains.items())]
        return [spec for entry in domains for spec in (entry.action_spec, entry.state_spec) if spec]

    def demonstrations_of(self, domain: str) -> DemonstrationsConfig:
        """The demonstrations of a domain: its own, else those of the run; environment "" if there are none."""
        entry = self.domains.get(domain)
        return entry.demonstrations if entry and entry.demonstrations.environment else self.demonstrations

    def demonstrations_field(self, domain: str) -> str:
        """The name of the field of `demonstrations_of`, for messages."""
        entry = self.domains.get(domain)
        own = entry is not None and bool(entry.demonstrations.environment)
        return f"config.data.domains.{domain}.demonstrations" if own else "config.data.demonstrations"

    @property
    def gathered(self) -> dict[str, DemonstrationsConfig]:
        """The demonstrations of each domain whose data set is gathered by the run."""
        found = {name: self.demonstrations_of(name) for name, entry in self.domains.items() if not entry.path}
        return {name: demonstrations for name, demonstrations in found.items() if demonstrations.environment}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for weight matrices, with linear warm-up and cosine decay (paper, appendix: AdamW)."""

    # "muon": Muon for the kernels, AdamW for the rest, with the same rates (train/optimizer.py)
    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    end_learning_rate: float = 5e-6
    warmup: float = 0.02  # share of the steps; the paper leaves its length unsaid
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.05  # none on biases, norms and embeddings of position
    clip_norm: float = 10.0  # of the global gradient; 0: off
    freeze: tuple[str, ...] = ()  # regular expressions on parameter paths, e.g. "vision/.*"
    # (pattern, factor) pairs: the rate of a parameter by the first pattern that matches its path, e.g.
    # (("vision/.*", 0.1),)
    learning_rate_factors: tuple[tuple[Any, ...], ...] = ()
    ema: float = 0.0  # decay of the averaged parameters used in evaluation and acting; 0: off


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (models/lora.py): W + scale * A B in place of W, which is frozen."""

    patterns: tuple[str, ...] = ()  # regular expressions on paths of kernels, e.g. "language/blocks/.*"; (): none
    rank: int = 8  # columns of A, rows of B
    scale: float = 1.0  # alpha / rank of the paper


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 100_000
    batch_size: int = 256  # rows of an optimizer step, over all devices and microbatches
    accumulation: int = 1  # microbatches of a step
    rows_per_device: int = 0  # most rows a device computes at once: makes the microbatches; 0: as many as accumulation
    log_every: int = 50
    validate_every: int = 1000  # 0: at the end only
    patience: int = 0  # validations in a row without a new best after which the run ends; 0: off
    validation_batches: int = 8
    picture_every: int = 0  # steps between pictures of input, mask, reconstruction; 0: at the end only
    report_every: int = 0  # steps between versions of WORKDIR/report.html (agent_jax.view run); 0: at the end only
    compile_cache: str = "compiled"  # compiled programs for the next start, in the workdir unless absolute; "": none


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices by axis (runtime/sharding.py); -1 in one place takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    replica: int = 1  # outermost: one for each slice of a TPU, so that only gradients cross the network between them
    platform: Literal["", "cpu", "gpu", "tpu"] = ""  # refuse to run elsewhere; empty: whatever is there


@dataclasses.dataclass(frozen=True)
class PretrainedConfig:
    """Weights of Hugging Face: a folder, one of its files, or ORG/NAME on the hub; empty: fresh parameters."""

    vision: str = ""
    language: str = ""
    interpolate_positions: bool = False  # resize CLIP's position table where config.model.vision.image_size differs


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where parameters come from when the workdir holds no checkpoint."""

    checkpoint: str = ""  # a workdir or step, a folder of `convert to-pytorch`, or ORG/NAME of one on the hub; it is
    # grown where its vocabulary or model differs (convert/grow)
    weights: Literal["raw", "averaged"] = "raw"  # of that run: the last parameters, or their average where it keeps one
    fresh: tuple[str, ...] = ()  # regular expressions on paths of parameters that are not taken from it, e.g. "mae/.*"
    copy_tokens: tuple[str, ...] = ()  # rows of new tokens, as "NEW=OLD": each BLOCK/TOKEN, or BLOCK for its tokens of
    # the same name; BLOCK=BLOCK/TOKEN and BLOCK=text/TOKEN copy one row to all. Other new rows: the mean of the carried
    # ones + N(0, config.model.language.token_std)
    more_positions: bool = False  # take it for more config.model.language.positions: the new ones repeat its own
    interpolate_positions: bool = False  # take it for another config.model.vision.image_size: resizes a trained table
    pretrained: PretrainedConfig = PretrainedConfig()


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk."""

    every: int = 1000  # steps; 0: at the end only
    keep_latest: int = 3
    keep_best: int = 1  # by best_metric
    # Of a validation: "loss", a name as "action_accuracy", or DOMAIN/action. Lower is better, of an accuracy higher.
    best_metric: str = "loss"


@dataclasses.dataclass(frozen=True)
class ClosedLoopConfig:
    """Acting in a simulator at the end of training, and in its course."""

    environment: str = ""  # "babyai", or one of your own, as "pusht.py"; empty: none
    episodes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # episodes by task
    # In place of both, to act in several simulators: domain -> episodes by task; the environment of each is that of the
    # domain's demonstrations
    domains: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    every: int = 0  # steps between evaluations in training, greedy and without baselines; 0: at the end only
    processes: int = 0  # that step the simulators; 0: the training's own
    seed: int = 1_000_000_000  # first seed; demonstrations never reach it
    temperature: float = 1.0  # of the sampled policy, reported beside the greedy one
    baselines: bool = True  # random actions and the expert beside them, at the end
    video: bool = True

    @property
    def acts(self) -> bool:
        """Whether the run acts in a simulator at its end."""
        return bool(self.environment or self.domains)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Scores on held-out data at the end of training."""

    rows: int = 0  # most rows of each domain of the layouts "answer" and "label", as `evaluate offline --rows`; 0: none


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where metrics go besides metrics.jsonl and TensorBoard."""

    wandb: str = ""  # PROJECT or ENTITY/PROJECT of Weights & Biases, by the extra `wandb`; empty: off


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = 0
    model: ModelConfig = ModelConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    init: InitConfig = InitConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    closed_loop: ClosedLoopConfig = ClosedLoopConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log: LogConfig = LogConfig()

    def with_vocabulary_size(self, size: int) -> Config:
        """The config with `model.language.vocabulary_size` filled in: ids of text, actions and states."""
        language = dataclasses.replace(self.model.language, vocabulary_size=size)
        return dataclasses.replace(self, model=dataclasses.replace(self.model, language=language))
