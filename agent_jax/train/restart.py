"""Where a run's first state comes from: the first of these sources that there is. The log names it.

    1. the newest undamaged checkpoint of the workdir      state, and position in the data
    2. config.init.checkpoint                              parameters of another run
    3. config.init.pretrained                              CLIP and OPT, the rest fresh
    4. fresh parameters, by config.seed

A workdir goes on with the config it was begun with, or as a longer run: what would make it another run is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.checkpoint import Checkpoints
from agent_jax.config import Config, from_config_dict
from agent_jax.convert.huggingface.load import pretrained_params
from agent_jax.data.pipeline.domains import Domain
from agent_jax.models.agent import Params, abstract_params, init_params
from agent_jax.runtime.sharding import replicated
from agent_jax.train.optimizer import learning_rate_schedule
from agent_jax.train.state import INIT_KEY, TrainState, abstract_state, init_state, purpose_key

# Fields that may change when a run is resumed: they decide how and where it is carried out, not what it computes.
# Data may have moved: it is told by the number of its windows, which is checked too (data/pipeline/loader.py).
FREE_FIELDS = re.compile(
    r"(mesh|checkpoint|closed_loop|init)\..*|data\.(workers|prefetch|directory|out_of_bounds)"
    r"|data\.(demonstrations\.processes|domains\..+\.path)"
    r"|train\.(accumulation|rows_per_device|log_every|validate_every|validation_batches|picture_every|compile_cache)|train\.patience"
    r"|model\.(attention|remat|unroll)"
)

# Fields of config.model in which the run of `config.init.checkpoint` may differ, since they do not change what its
# parameters mean. Some of the others change no shape (heads, activations, the epsilon of LayerNorm, positions, the
# order of temporal attention): the parameters would load and compute something else.
_EXECUTION_FIELDS = re.compile(r"dtype|remat|attention|unroll|language\.(token_std|position_std)"
                               r"|language\.vocabulary_(size|multiple)"  # the vocabularies themselves are compared
                               r"|classes")  # a class head may be added or dropped, which the log says
_TRAINING_FIELDS = re.compile(r"visual_tokens|mae\.mask_ratio|language\.dropout")  # what differs is logged


@dataclasses.dataclass(frozen=True)
class Start:
    """The state a run starts from."""

    state: TrainState
    data_state: dict[str, Any] | None  # position in the data; None: its beginning
    source: str  # for the log


def checkpoint_meta(config: Config, vocabulary: Vocabulary, domains: Sequence[Domain],
                    data_state: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint holds beside the arrays: all that resuming and acting need (agent_jax/checkpoints/meta.py)."""
    return {
        "config": dataclasses.asdict(config),
        "vocabulary": vocabulary.to_json(),
        "domains": {domain.name: domain.to_meta() for domain in domains},
        "data_state": dict(data_state) if data_state is not None else None,
    }


def start(config: Config, mesh: Mesh, optimizer: optax.GradientTransformation, vocabulary: Vocabulary,
          domains: Sequence[Domain], checkpoints: Checkpoints) -> Start:
    """The state from the first source that there is.

    Raises:
        ValueError: a workdir of another run, another vocabulary or ActionSpec, weights that do not fit the model.
        DamagedCheckpointError: every checkpoint of the workdir is damaged.
        FileNotFoundError: config.init names what is not there.
    """
    if checkpoints.steps():
        _check_same_run(checkpoint.read_meta(checkpoints.directory), config, vocabulary, domains, checkpoints.directory)
    resumed = checkpoints.restore(abstract_state(config, mesh, optimizer))
    if resumed is not None:
        step, state, meta = resumed
        longer = _longer_run(meta, config, step)
        return Start(state, meta["data_state"], f"resumed from step {step} in {checkpoints.directory}{longer}")
    init = config.init
    if init.checkpoint:
        directory, named = checkpoint.locate(init.checkpoint)

        def read(step: int) -> tuple[Params, str]:
            return _params_of_step(directory, step, config, mesh, optimizer, vocabulary)

        (params, source), damaged = (read(named), {}) if named is not None else checkpoint.newest_undamaged(
            directory, read)
        note = f"; damaged newer steps were passed over: {', '.join(map(str, damaged))}" if damaged else ""
        state = init_state(config, mesh, optimizer, params)
        return Start(state, None, f"parameters from {source} (init.checkpoint){note}")
    if init.pretrained.vision or init.pretrained.language:
        params, report = pretrained_params(config, vocabulary, purpose_key(config.seed, INIT_KEY))
        state = init_state(config, mesh, optimizer, params)
        return Start(state, None, f"pretrained weights, the rest fresh (init.pretrained)\n{report}")
    return Start(init_state(config, mesh, optimizer), None, f"fresh parameters, seed {config.seed}")


def _params_of_step(directory: Any, step: int, config: Config, mesh: Mesh, optimizer: optax.GradientTransformation,
                    vocabulary: Vocabulary) -> tuple[Params, str]:
    """The parameters of a step of config.init.checkpoint, on the mesh, and what they are, for the log."""
    meta = checkpoint.read_meta(directory, step)
    if difference := vocabulary.difference(Vocabulary.from_json(meta["vocabulary"])):
        raise ValueError(f"config.init.checkpoint={config.init.checkpoint}: its vocabulary (there) differs from "
                         f"config.vocabulary (here): {difference}")
    carried = _carried_model(meta, config)
    shapes = abstract_state(config, mesh, optimizer).params
    source = f"{directory / str(meta['step'])}{carried}"
    has_head = any(path.startswith("params/classifier/") for path in meta["fingerprint"])
    if has_head and "classifier" not in shapes:  # read with all the others, then dropped
        head = abstract_params(from_config_dict(meta["config"]).model)["classifier"]
        head = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), head)
        params, _ = checkpoint.restore_parameters(directory, {**shapes, "classifier": head}, step=step)
        return {name: params[name] for name in shapes}, f"{source}, without its class head"
    if has_head or "classifier" not in shapes:
        return checkpoint.restore_parameters(directory, shapes, step=step)[0], source
    # A run without classes is what one with classes is tuned from.
    shared = {name: part for name, part in shapes.items() if name != "classifier"}
    params, _ = checkpoint.restore_parameters(directory, shared, step=step)
    key = purpose_key(config.seed, INIT_KEY)
    head = jax.jit(lambda: init_params(config.model, key)["classifier"])()
    return {**params, "classifier": head}, f"{source}, with a fresh class head"


def _carried_model(meta: Mapping[str, Any], config: Config) -> str:
    """What differs between the model of `config.init.checkpoint` and this run's, and may: for the log, "" if nothing.

    Raises:
        ValueError: a field of the model differs that changes what the parameters compute.
    """
    # A field that the checkpoint does not know yet counts as its default, which does what was done without the field.
    there, here = (by_name(dataclasses.asdict(one.model)) for one in (from_config_dict(meta["config"]), config))
    lines = {name: f"config.model.{name}: {there[name]!r} there, {here[name]!r} here"
             for name in here if there[name] != here[name]}
    refused = [line for name, line in lines.items()
               if not (_EXECUTION_FIELDS.fullmatch(name) or _TRAINING_FIELDS.fullmatch(name))]
    if there["classes"] and here["classes"] and "classes" in lines:
        refused.append(lines["classes"])
    if refused:
        raise ValueError(
            f"config.init.checkpoint={config.init.checkpoint}: its model (there) differs from config.model (here), so "
            "its parameters would compute something else; set these fields to the checkpoint's values, or take another "
            "checkpoint:\n" + "\n".join(f"  {line}" for line in refused))
    carried = [line for name, line in lines.items() if _TRAINING_FIELDS.fullmatch(name)]
    return f" ({'; '.join(carried)})" if carried else ""


def _check_same_run(meta: Mapping[str, Any], config: Config, vocabulary: Vocabulary, domains: Sequence[Domain],
                    directory: Any) -> None:
    """Refuse to continue a workdir as another run; nothing has been touched yet."""
    advice = "use the config it was begun with, or another --workdir (config.init.checkpoint takes over the parameters)"
    if difference := vocabulary.difference(Vocabulary.from_json(meta["vocabulary"])):
        raise ValueError(f"{directory} was trained with another vocabulary (there) than this run's (here): "
                         f"{difference}; {advice}")
    for domain in domains:
        if domain.name not in meta["domains"]:
            continue  # the comparison of the configs names it
        saved = Domain.from_meta(meta["domains"][domain.name], vocabulary)
        for kind, here, there in (("ActionSpec", domain.spec, saved.spec), ("StateSpec", domain.state, saved.state)):
            difference = (here.spec.difference(there.spec) if here and there
                          else "" if here is there else f"one of them has no {kind}")
            if difference:
                raise ValueError(f"{directory}: domain {domain.name!r} was trained with another {kind} (there) than "
                                 f"its data set's now (here): {difference}; {advice}")
    # A field that the workdir does not know yet counts as its default, which does what was done without the field.
    there = dataclasses.asdict(from_config_dict(meta["config"]))
    changes = config_changes(there, dataclasses.asdict(config))
    if changes:
        lines = "\n".join(f"  {field}: {there!r} there, {here!r} here"
                          f"{' (it may grow)' if field == 'config.train.steps' else ''}"
                          for field, (there, here) in changes.items())
        raise ValueError(f"{directory} belongs to another run; {advice}. Fields that differ:\n{lines}")


def _longer_run(meta: Mapping[str, Any], config: Config, step: int) -> str:
    """What it means that `config.train.steps` has grown since the step was saved: for the log, "" if it has not."""
    before, now = from_config_dict(meta["config"]).train.steps, config.train.steps
    if before == now:
        return ""
    old, new = (float(learning_rate_schedule(config.optimizer, steps)(step)) for steps in (before, now))
    return (f"; config.train.steps was {before:,} and is {now:,}: from here on the learning rate is that of a run of "
            f"{now:,} steps, warm-up and decay included ({new:.3g} at the next step, where the run of {before:,} "
            f"{'had ' + format(old, '.3g') if step < before else 'was over'})")


def config_changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that differ between two configs as JSON, less those that may: {field: (there, here)}.

    A run may become longer: `train.steps` may grow.
    """
    one, two = by_name(there), by_name(here)
    differing = {field: (one.get(field), two.get(field)) for field in sorted(one.keys() | two.keys())
                 if one.get(field) != two.get(field)}
    before, now = differing.get("train.steps", (None, None))
    if isinstance(before, int) and isinstance(now, int) and before < now:
        del differing["train.steps"]
    return {f"config.{field}": values for field, values in differing.items()
            if not FREE_FIELDS.fullmatch(field)}


def by_name(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted name, tuples as lists."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for name, item in value.items():
            found |= by_name(item, f"{prefix}.{name}" if prefix else name)
        return found
    return {prefix: list(value) if isinstance(value, tuple) else value}
