"""Every field of a run, typed and checked: frozen dataclasses made from the ConfigDict of a config file.

A config file's `get_config()` starts from `to_config_dict(Config())` (configs/default.py) and changes what differs.
`train.py` turns the overridden ConfigDict into a `Config` at once with `from_config_dict`; no other module sees a
ConfigDict. The defaults below are the paper's model and recipe; a number carries its reason or source.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

from agent_jax.kernels import cudnn_lacks


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
    attention: Literal["auto", "xla", "xla_f32", "cudnn", "splash"] = "auto"  # in training; models/flash_attention.py
    classes: int = 0  # of a clip, told by a linear head on its CLS for domains of the layout "label"; 0: no head
    unroll: int = 1  # layers compiled as one piece of the scan: a small model on a CPU gains a sixth by all of them


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """Text and action ids."""

    tokenizer: str = "bytes"  # "bytes", or a directory with OPT's vocab.json and merges.txt, or any tokenizer.json
    # Blocks of action and state ids after the text, in order: "iafm", "babyai", or those that the specs of the domains
    # name, which hold the tokens of these specs (spec_declarations.py).
    blocks: tuple[str, ...] = ("iafm",)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the three losses are joined (losses.py)."""

    form: Literal["mean", "eq5"] = "mean"
    token: float = 2.0  # weight of the joint language-and-action mean in the `mean` form (authors' code)
    language: float = 1.0  # weight of a language target
    action: float = 1.0  # weight of an action target
    mae: float = 1.0
    label: float = 1.0  # weight of the mean cross-entropy of the class labels


@dataclasses.dataclass(frozen=True)
class DomainConfig:
    """One data set: where it lies, what its fields are called, how it is cut into windows."""

    path: str = ""  # directory of the data set: the one that holds dataset_info.json and features.json
    weight: float = 1.0  # how many times each of its windows is seen in an epoch; 1: plain concatenation (paper)
    layout: Literal["actions", "answer", "label"] = "actions"  # what is predicted: actions, a text, or a clip's class
    cameras: tuple[str, ...] = ("steps/observation/rgb",)  # images of a step, in this order
    instruction: str = "instruction"  # of an episode or, below steps/, of a step: text, or UTF-8 codes padded with 0
    action_spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # ActionSpec.to_dict(); {}: the data's own
    state_spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # StateSpec.to_dict(); {}: the data's own
    window: int = 4  # M, time steps of a sample: 4 in robotics, 9 in games (paper)
    stride: int = 4  # steps between the starts of windows; equal to `window`: consecutive chunks (paper)
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
class DemonstrationsConfig:
    """Expert episodes gathered from a simulator into the store before training, once."""

    environment: str = ""  # "babyai"; empty: nothing is gathered
    episodes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # episodes by level, in training
    validation_episodes: int = 0  # of each level, from other seeds
    noise: float = 0.0  # probability of a random action in the expert's place; such steps are not imitated
    image_size: int = 56  # pixels; 7 x 7 tiles in BabyAI
    seed: int = 0
    processes: int = 2


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
    demonstrations: DemonstrationsConfig = DemonstrationsConfig()
    frames_per_row: int = 0  # F, images of a row; short windows share one; 0: as many as the longest window has
    augmentation: AugmentationConfig = AugmentationConfig()
    out_of_bounds: float = 0.01  # largest share of steps with a value beyond its spec's bounds; 1: unchecked
    directory: str = "~/.cache/agent_jax/data"  # where demonstrations are gathered, and found again
    workers: int = 0  # loader processes; 0: a thread of the main process
    prefetch: int = 4  # batches made ahead


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay (paper, appendix)."""

    learning_rate: float = 1e-4
    end_learning_rate: float = 5e-6
    warmup: float = 0.02  # share of the steps; the paper leaves its length unsaid
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.05  # none on biases, norms and embeddings of position
    clip_norm: float = 10.0  # of the global gradient; 0: off
    freeze: tuple[str, ...] = ()  # regular expressions on parameter paths, e.g. "vision/.*"
    ema: float = 0.0  # decay of the averaged parameters used in evaluation and acting; 0: off


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 100_000
    batch_size: int = 256  # rows of an optimizer step, over all devices and microbatches
    accumulation: int = 1  # microbatches of a step
    rows_per_device: int = 0  # most rows a device computes at once: makes the microbatches; 0: as many as accumulation
    log_every: int = 50
    validate_every: int = 1000  # 0: at the end only
    validation_batches: int = 8
    picture_every: int = 0  # steps between pictures of input, mask, reconstruction; 0: at the end only
    compile_cache: str = "compiled"  # compiled programs for the next start, in the workdir unless absolute; "": none


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices by axis (sharding.py); -1 in one place takes what is left."""

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

    checkpoint: str = ""  # a checkpoint directory of ours
    pretrained: PretrainedConfig = PretrainedConfig()


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk."""

    every: int = 1000  # steps; 0: at the end only
    keep_latest: int = 3
    keep_best: int = 1  # by validation loss


@dataclasses.dataclass(frozen=True)
class ClosedLoopConfig:
    """Acting in a simulator at the end of training, and in its course."""

    environment: str = ""  # "babyai"; empty: none
    episodes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # episodes by task
    every: int = 0  # steps between evaluations in training, greedy and without baselines; 0: at the end only
    processes: int = 0  # that step the simulators; 0: the training's own
    seed: int = 1_000_000_000  # first seed; demonstrations never reach it
    temperature: float = 1.0  # of the sampled policy, reported beside the greedy one
    video: bool = True


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = 0
    model: ModelConfig = ModelConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    init: InitConfig = InitConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    closed_loop: ClosedLoopConfig = ClosedLoopConfig()


def to_config_dict(config: Any) -> ConfigDict:
    """The ConfigDict of a dataclass, field by field, locked: `get_config()` of a config file starts from it."""

    def convert(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {field.name: convert(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: convert(item) for key, item in value.items()}
        return value

    return ConfigDict(convert(config)).lock()


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> Config:
    """The checked `Config` of a ConfigDict or of a plain (JSON) mapping.

    Raises:
        ValueError: names the field, what was found and what was expected, for an unknown field (with the nearest known
            one), a wrong type, or values that contradict each other.
    """
    # A config file that could not be read is an object that says so at the first access to an attribute.
    plain = config if isinstance(config, Mapping) else config.to_dict()
    made = build_field(Config, plain, "config")
    validate(made)
    return made


def build_field(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass, a Literal, a tuple, a mapping or a scalar.

    Raises:
        ValueError: names `where`, what was found and what was expected.
    """
    if isinstance(value, config_dict.FieldReference):
        value = value.get()
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: found {value!r}, expected a group of fields")
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                near = difflib.get_close_matches(str(name), hints, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(hints)}"
                raise ValueError(f"{where}.{name}: no such field; {hint}")
        return kind(**{name: build_field(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: found {value!r}, expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (tuple, list)):
            raise ValueError(f"{where}: found {value!r}, expected a tuple")
        return tuple(build_field(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: found {value!r}, expected a mapping")
        return {key: build_field(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return _json_form(value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        expected = kind.__name__ if isinstance(kind, (type, types.GenericAlias)) else str(kind)
        raise ValueError(f"{where}: found {value!r} of type {type(value).__name__}, expected {expected}")
    return value


def _json_form(value: Any, where: str) -> Any:
    """`value` as JSON would give it back (tuples are lists), so that a saved config equals the one it was made from."""
    if isinstance(value, Mapping):
        return {str(key): _json_form(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_form(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError(f"{where}: found {value!r} of type {type(value).__name__}, expected a value that JSON can hold")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_layout(where: str, domain: DomainConfig, model: ModelConfig) -> None:
    """Refuse a domain whose cameras or layout cannot be laid out."""
    _check(bool(domain.cameras) and len(set(domain.cameras)) == len(domain.cameras),
           f"{where}.cameras={domain.cameras}: expected at least one path, and none twice")
    _check(domain.max_answer >= 1, f"{where}.max_answer={domain.max_answer} must be at least 1")
    _check(domain.layout == "actions" or not (domain.action_spec or domain.state_spec),
           f"{where}.layout={domain.layout!r} has no actions; leave action_spec and state_spec empty; expected "
           "them in the layout 'actions' only")
    if domain.layout == "label":
        _check(model.classes >= 2, f"{where}.layout='label' needs config.model.classes of at least 2; expected so, "
                                   f"found {model.classes}")
        _check(domain.video or domain.window * len(domain.cameras) == 1,
               f"{where}.layout='label' reads the CLS of one clip; set {where}.video=True, or window=1 and one camera")
        _check(len(domain.cameras) == 1, f"{where}.layout='label' reads the CLS of one camera's clip; found "
                                         f"{len(domain.cameras)} cameras")


def validate(config: Config) -> None:
    """Refuse values that contradict each other before anything is read or built.

    Raises:
        ValueError: names the fields, their values and the rule.
    """
    model, train, optimizer = config.model, config.train, config.optimizer
    vision = model.vision
    _check(vision.patch_size > 0 and vision.image_size % vision.patch_size == 0,
           f"config.model.vision.image_size={vision.image_size} must be a multiple of patch_size={vision.patch_size}")
    _check(vision.image_size > 0, f"config.model.vision.image_size={vision.image_size} must be at least 1")
    for name in ("positions", "vocabulary_multiple"):
        _check(getattr(model.language, name) >= 1,
               f"config.model.language.{name}={getattr(model.language, name)} must be at least 1")
    for name, part in (("vision", vision), ("language", model.language), ("mae", model.mae)):
        _check(part.heads > 0 and part.width % part.heads == 0,
               f"config.model.{name}.width={part.width} must be a multiple of heads={part.heads}")
        _check(part.depth > 0, f"config.model.{name}.depth={part.depth} must be at least 1")
    for name, width in (("vision", vision.width), ("mae", model.mae.width)):
        _check(width % 4 == 0, f"config.model.{name}.width={width} must be a multiple of 4 for 2-D sin-cos positions")
    if model.attention == "cudnn":
        lacks = cudnn_lacks(model)
        _check(not lacks, f"config.model.attention='cudnn': {lacks}, or attention='xla'")
    _check(model.classes >= 0, f"config.model.classes={model.classes} must be at least 0")
    _check(model.unroll >= 1, f"config.model.unroll={model.unroll} must be at least 1")
    _check(0 < model.mae.mask_ratio < 1, f"config.model.mae.mask_ratio={model.mae.mask_ratio} must lie between 0 and 1")
    _check(0 <= model.language.dropout < 1,
           f"config.model.language.dropout={model.language.dropout} must lie in [0, 1)")
    _check(train.accumulation >= 1 and train.batch_size >= 1 and train.batch_size % train.accumulation == 0,
           f"config.train.batch_size={train.batch_size} must be a multiple of accumulation={train.accumulation}")
    _check(train.rows_per_device >= 0 and not (train.rows_per_device and train.accumulation > 1),
           f"config.train.rows_per_device={train.rows_per_device} and accumulation={train.accumulation}: expected 0 or "
           "more, and accumulation=1 where it is set, which it stands in place of")
    for name in ("steps", "log_every", "validation_batches"):
        _check(getattr(train, name) >= 1, f"config.train.{name}={getattr(train, name)} must be at least 1")
    for name in ("validate_every", "picture_every"):
        _check(getattr(train, name) >= 0, f"config.train.{name}={getattr(train, name)} must be at least 0")
    _check(optimizer.learning_rate > 0, f"config.optimizer.learning_rate={optimizer.learning_rate} must be positive")
    _check(0 <= optimizer.warmup < 1, f"config.optimizer.warmup={optimizer.warmup} is a share of the steps, in [0, 1)")
    _check(0 <= optimizer.ema < 1, f"config.optimizer.ema={optimizer.ema} must lie in [0, 1)")
    for name in ("workers", "prefetch", "frames_per_row"):
        _check(getattr(config.data, name) >= 0, f"config.data.{name}={getattr(config.data, name)} must be at least 0")
    _check(config.checkpoint.every >= 0, f"config.checkpoint.every={config.checkpoint.every} must be at least 0")
    for name, domain in config.data.domains.items():
        _check(domain.window >= 1 and domain.stride >= 1,
               f"config.data.domains.{name}: window={domain.window} and stride={domain.stride} must be at least 1")
        _check(domain.weight > 0, f"config.data.domains.{name}.weight={domain.weight} must be positive")
        _check(domain.max_text >= 1, f"config.data.domains.{name}.max_text={domain.max_text} must be at least 1")
        _check_layout(f"config.data.domains.{name}", domain, model)
    for name in ("brightness", "saturation"):
        factors = getattr(config.data.augmentation, name)
        _check(not factors or (len(factors) == 2 and 0 < factors[0] <= factors[1]),
               f"config.data.augmentation.{name}={factors}: expected (least, greatest) factor above 0, or () for none")
    _check(0 <= config.data.augmentation.hue <= 0.5,
           f"config.data.augmentation.hue={config.data.augmentation.hue} must lie in [0, 0.5], in turns of the circle")
    _check(0 <= config.data.out_of_bounds <= 1,
           f"config.data.out_of_bounds={config.data.out_of_bounds} is a share of the steps, in [0, 1]")
    _check(0 <= config.data.demonstrations.noise < 1,
           f"config.data.demonstrations.noise={config.data.demonstrations.noise} must lie in [0, 1)")
    axes = {name: getattr(config.mesh, name) for name in ("replica", "data", "fsdp", "tensor")}
    _check(all(size >= 1 or size == -1 for size in axes.values()) and list(axes.values()).count(-1) <= 1,
           f"config.mesh: found {axes}, expected sizes of at least 1, or -1 in one place for the devices left")
    for name, episodes in (("data.demonstrations", config.data.demonstrations.episodes),
                           ("closed_loop", config.closed_loop.episodes)):
        for level, number in episodes.items():
            _check(number >= 1, f"config.{name}.episodes.{level}={number} must be at least 1")
    for name in ("every", "processes"):
        _check(getattr(config.closed_loop, name) >= 0,
               f"config.closed_loop.{name}={getattr(config.closed_loop, name)} must be at least 0")
    _check(not config.closed_loop.every or bool(config.closed_loop.environment and config.closed_loop.episodes),
           f"config.closed_loop.every={config.closed_loop.every} needs closed_loop.environment and closed_loop.episodes"
           "; expected both, or every=0")
    _check(0 < config.closed_loop.temperature < float("inf"),
           f"config.closed_loop.temperature={config.closed_loop.temperature} must be positive and finite")
