"""What a run of a config would take from its `init.checkpoint`, from descriptions alone: no parameter is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from agent_jax.actions.declarations import vocabulary_blocks
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.config import Config
from agent_jax.convert.grow.plan import AgentDescription, Growth, plan_growth
from agent_jax.convert.grow.source import Source, with_source
from agent_jax.data.pipeline.domain_specs import KINDS
from agent_jax.data.store.store import open_store


def preview(config: Config) -> tuple[str, Growth]:
    """The name of the source, and what happens to every parameter.

    Args:
        config: of the new run. Data sets are opened only for specs that the config leaves to them.

    Raises:
        FileNotFoundError: there is no such checkpoint or data set.
        DamagedCheckpointError: every step of the checkpoint is damaged.
        ValueError: no checkpoint is named; or as `plan_growth`.
    """
    if not config.init.checkpoint:
        raise ValueError("config.init.checkpoint: empty, expected the checkpoint to grow; pass CHECKPOINT or "
                         "--config.init.checkpoint=PATH")
    blocks = vocabulary_blocks(config.vocabulary.blocks, _specs(config))
    vocabulary = Vocabulary.build(config.vocabulary.tokenizer, blocks)
    target = AgentDescription(config.with_vocabulary_size(vocabulary.size).model, vocabulary)

    def plan(source: Source) -> tuple[str, Growth]:
        return source.name, plan_growth(source.agent, target, config.init)

    return with_source(config.init, plan)[0]


def _specs(config: Config) -> list[Mapping[str, Any]]:
    """The specs of the domains that have actions, of the config or of their data sets."""
    specs = []
    for name, domain in sorted(config.data.domains.items()):
        if domain.layout != "actions":
            continue
        stored: Mapping[str, Any] = {}
        if domain.path and not (domain.action_spec and domain.state_spec):
            path = os.path.expanduser(domain.path)
            if not os.path.exists(path):
                raise FileNotFoundError(f"config.data.domains.{name}.path={domain.path}: not found; the tokens of its "
                                        "ActionSpec or StateSpec may be in the data set; pass another "
                                        f"--config.data.domains.{name}.path=DIR, or --config.data.domains.{name}.path= "
                                        "if the config has all specs")
            stored = open_store(path).metadata
        specs += [spec for field in KINDS if (spec := getattr(domain, field) or stored.get(field))]
    return specs
