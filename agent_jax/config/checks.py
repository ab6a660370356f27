"""Values of a config that contradict each other; each field by itself is checked by its type (fields.py)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from agent_jax.config.kernels import cudnn_lacks
from agent_jax.config.schema import Config, DomainConfig, ModelConfig


def divisors(number: int) -> list[int]:
    """The positive whole numbers that divide `number`, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


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
    k = domain.actions_per_image
    _check(k >= 1, f"{where}.actions_per_image={k} must be at least 1")
    _check(k == 1 or domain.layout == "actions",
           f"{where}.actions_per_image={k}: the layout {domain.layout!r} has no actions; expected 1")
    _check(domain.window % k == 0,
           f"{where}.actions_per_image={k} must divide window={domain.window}, which counts actions; set "
           f"actions_per_image to one of {', '.join(map(str, divisors(domain.window)))}, or window to "
           f"{k * (domain.window // k + 1)}")
    if domain.layout == "label":
        _check(model.classes >= 2, f"{where}.layout='label' needs config.model.classes of at least 2; expected so, "
                                   f"found {model.classes}")
        _check(domain.video or domain.window * len(domain.cameras) == 1,
               f"{where}.layout='label' reads the CLS of one clip; set {where}.video=True, or window=1 and one camera")
        _check(len(domain.cameras) == 1, f"{where}.layout='label' reads the CLS of one camera's clip; found "
                                         f"{len(domain.cameras)} cameras")


# Names of a validation's losses and accuracies (train/metrics.py).
_METRICS = ("language", "action", "mae", "language_accuracy", "action_accuracy")
_LABEL_METRICS = ("label", "label_accuracy")


def _check_best_metric(config: Config) -> None:
    """Refuse a metric that no validation of the run can have."""
    names = (*_METRICS, *(_LABEL_METRICS if config.model.classes else ()))
    known = ["loss", *names, *(f"{domain}/{name}" for domain in config.data.domains for name in names)]
    metric = config.checkpoint.best_metric
    near = difflib.get_close_matches(metric, known, n=1)
    _check(metric in known, f"config.checkpoint.best_metric={metric!r}: expected 'loss', {', '.join(names)}, or one of "
           f"these with a domain, as DOMAIN/action{f'; did you mean {near[0]!r}?' if near else ''}")


def _check_episodes(where: str, episodes: Mapping[str, int]) -> None:
    for task, number in episodes.items():
        _check(number >= 1, f"{where}.{task}={number} must be at least 1")


def _check_closed_loop(config: Config) -> None:
    """Refuse two ways to name simulators at once, and domains of which the simulator is not known."""
    loop, data = config.closed_loop, config.data
    _check_episodes("config.closed_loop.episodes", loop.episodes)
    _check(not loop.domains or not (loop.environment or loop.episodes),
           f"config.closed_loop.domains: found {', '.join(loop.domains)} as well as closed_loop.environment="
           f"{loop.environment!r} and closed_loop.episodes={dict(loop.episodes)}; expected either the domains or one "
           "environment with its episodes; leave the others empty")
    for name, episodes in loop.domains.items():
        where = f"config.closed_loop.domains.{name}"
        if name not in data.domains:
            near = difflib.get_close_matches(name, data.domains, n=1)
            raise ValueError(f"{where}: no such domain; " + (f"did you mean {near[0]!r}?" if near else
                             f"expected names of config.data.domains: {', '.join(sorted(data.domains)) or 'none'}"))
        _check(bool(data.demonstrations_of(name).environment),
               f"{where}: the domain has no simulator; set config.data.domains.{name}.demonstrations.environment, or "
               "remove it from config.closed_loop.domains")
        _check(data.domains[name].layout == "actions",
               f"{where}: the domain's layout is {data.domains[name].layout!r}, which has no actions; expected "
               "'actions'")
        _check(bool(episodes), f"{where}={{}}: expected episodes by task, e.g. {{'GoToLocal': 100}}")
        _check_episodes(where, episodes)


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
    _check(train.patience >= 0, f"config.train.patience={train.patience} must be at least 0")
    _check(not train.patience or (train.validate_every > 0 and config.checkpoint.keep_best > 0),
           f"config.train.patience={train.patience} needs config.train.validate_every and config.checkpoint.keep_best "
           f"above 0; found {train.validate_every} and {config.checkpoint.keep_best}")
    _check_best_metric(config)
    _check(optimizer.learning_rate > 0, f"config.optimizer.learning_rate={optimizer.learning_rate} must be positive")
    _check(0 <= optimizer.warmup < 1, f"config.optimizer.warmup={optimizer.warmup} is a share of the steps, in [0, 1)")
    _check(0 <= optimizer.ema < 1, f"config.optimizer.ema={optimizer.ema} must lie in [0, 1)")
    _check(config.lora.rank >= 1, f"config.lora.rank={config.lora.rank} must be at least 1")
    _check(0 < config.lora.scale < float("inf"), f"config.lora.scale={config.lora.scale} must be positive and finite")
    for i, pair in enumerate(optimizer.learning_rate_factors):
        _check(len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], (int, float)) and pair[1] > 0,
               f"config.optimizer.learning_rate_factors[{i}]={pair!r}: expected (pattern, factor) with a text and a "
               "number above 0, as ('vision/.*', 0.1); config.optimizer.freeze stops a parameter altogether")
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
    for where, demonstrations in (("data.demonstrations", config.data.demonstrations), *(
            (f"data.domains.{name}.demonstrations", domain.demonstrations) for name, domain in
            config.data.domains.items())):
        _check(0 <= demonstrations.noise < 1, f"config.{where}.noise={demonstrations.noise} must lie in [0, 1)")
        _check_episodes(f"config.{where}.episodes", demonstrations.episodes)
    axes = {name: getattr(config.mesh, name) for name in ("replica", "data", "fsdp", "tensor")}
    _check(all(size >= 1 or size == -1 for size in axes.values()) and list(axes.values()).count(-1) <= 1,
           f"config.mesh: found {axes}, expected sizes of at least 1, or -1 in one place for the devices left")
    _check_closed_loop(config)
    for name in ("every", "processes"):
        _check(getattr(config.closed_loop, name) >= 0,
               f"config.closed_loop.{name}={getattr(config.closed_loop, name)} must be at least 0")
    acts = (config.closed_loop.environment and config.closed_loop.episodes) or config.closed_loop.domains
    _check(not config.closed_loop.every or bool(acts),
           f"config.closed_loop.every={config.closed_loop.every} needs closed_loop.environment and closed_loop.episodes"
           ", or closed_loop.domains; expected these, or every=0")
    _check(re.fullmatch(r"([^/\s]+/)?[^/\s]+|", config.log.wandb) is not None,
           f"config.log.wandb={config.log.wandb!r}: expected PROJECT or ENTITY/PROJECT of Weights & Biases, or nothing")
    _check(config.evaluation.rows >= 0, f"config.evaluation.rows={config.evaluation.rows} must be at least 0")
    _check(0 < config.closed_loop.temperature < float("inf"),
           f"config.closed_loop.temperature={config.closed_loop.temperature} must be positive and finite")
