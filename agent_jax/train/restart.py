"""Where a run's first state comes from: the first of these sources that there is. The log names it.

    1. the newest undamaged checkpoint of the workdir      state, and position in the data
    2. config.init.checkpoint                              parameters of another run, grown to fit
    3. config.init.pretrained                              CLIP and OPT, the rest fresh
    4. fresh parameters, by config.seed

A workdir goes on with the config it was begun with, or as a longer run: what would make it another run is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import optax
from jax.sharding import Mesh

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.checkpoint import Checkpoints
from agent_jax.config import Config, from_config_dict
from agent_jax.convert.grow.fill import fill
from agent_jax.convert.grow.plan import AgentDescription, Growth, on_mesh, plan_growth
from agent_jax.convert.grow.report import growth_table
from agent_jax.convert.grow.source import Source, with_source
from agent_jax.convert.huggingface.load import pretrained_params
from agent_jax.data.pipeline.domains import Domain
from agent_jax.fields import by_name
from agent_jax.help_pages import help_page
from agent_jax.models.agent import Params
from agent_jax.models.random_keys import INIT_KEY, purpose_key
from agent_jax.runtime.sharding import replicated, tree_shardings
from agent_jax.train.optimizer import learning_rate_schedule
from agent_jax.train.state import TrainState, abstract_state, init_state

# Fields that may change when a run is resumed: they decide how and where it is carried out, not what it computes.
# Data may have moved: it is told by the number of its windows, which is checked too (data/pipeline/loader.py).
FREE_FIELDS = re.compile(
    r"(mesh|checkpoint|closed_loop|evaluation|init|log)\..*|data\.(workers|prefetch|directory|out_of_bounds)"
    r"|data\.(demonstrations\.processes|domains\..+\.(path|demonstrations\.processes))"
    r"|train\.(accumulation|rows_per_device|log_every|validate_every|validation_batches|picture_every|report_every|compile_cache)|train\.patience"
    r"|model\.(attention|remat|unroll)"
)

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
        ValueError: a workdir of another run, another vocabulary or ActionSpec; weights or a checkpoint that do not fit
            the model.
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
        params, source = _grown_params(config, mesh, vocabulary)
        return Start(init_state(config, mesh, optimizer, params), None, source)
    if init.pretrained.vision or init.pretrained.language:
        params, report = pretrained_params(config, vocabulary, purpose_key(config.seed, INIT_KEY))
        state = init_state(config, mesh, optimizer, params)
        return Start(state, None, f"pretrained weights, the rest fresh (init.pretrained)\n{report}")
    return Start(init_state(config, mesh, optimizer), None, f"fresh parameters, seed {config.seed}")


def _grown_params(config: Config, mesh: Mesh, vocabulary: Vocabulary) -> tuple[Params, str]:
    """The parameters of config.init.checkpoint, grown into this run's model, and what was done, for the log."""
    init, target = config.init, AgentDescription(config.model, vocabulary)
    shardings = tree_shardings(mesh, target.leaves)

    def take(source: Source) -> tuple[Params, str, Growth]:
        growth = plan_growth(source.agent, target, init)
        params = source.read(on_mesh(growth, shardings, replicated(mesh)))
        return fill(params, growth, purpose_key(config.seed, INIT_KEY), config.seed), source.name, growth

    (params, name, growth), damaged = with_source(init, take)
    fields = f" ({'; '.join(map(str, growth.fields))})" if growth.fields else ""
    note = f"; damaged newer steps were passed over: {', '.join(map(str, damaged))}" if damaged else ""
    table = "" if growth.is_identity else f"\n{growth_table(growth)}"
    return params, f"parameters from {name}{fields} (init.checkpoint){note}{table}"


def _check_same_run(meta: Mapping[str, Any], config: Config, vocabulary: Vocabulary, domains: Sequence[Domain],
                    directory: Any) -> None:
    """Refuse to continue a workdir as another run; nothing has been touched yet."""
    advice = ("use the config it was begun with, or another --workdir (config.init.checkpoint takes over the "
              f"parameters){help_page('guides/checkpoints.md', 'When resuming is refused')}")
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
