"""Two training steps of a tiny model, on one device, on a data set that `prepare` made."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np
import small_runs

from agent_jax.config import Config, DomainConfig
from agent_jax.data.pipeline.loader import Loader
from agent_jax.data.pipeline.run_data import open_data
from agent_jax.models.agent import abstract_params
from agent_jax.runtime.sharding import make_mesh, shard_batch
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.state import init_state
from agent_jax.train.step import StepMetrics, make_train_step


def train_two_steps(store: Path, domain: DomainConfig, blocks: tuple[str, ...] = ("iafm",),
                    classes: int = 0) -> StepMetrics:
    """The metrics of the second step, on the host.

    Args:
        store: directory of the data set.
        domain: its entry in the config; `path` is filled in.
        blocks: of the vocabulary.
        classes: of the model, for the layout "label".
    """
    config = small_runs.small_config(store, **{"train.steps": 2, "train.batch_size": 2, "optimizer.ema": 0.0,
                                               "model.language.positions": 256, "model.classes": classes})
    config = dataclasses.replace(
        config, vocabulary=dataclasses.replace(config.vocabulary, blocks=blocks),
        data=dataclasses.replace(config.data, domains={"made": dataclasses.replace(domain, path=str(store))}))
    return two_steps(config)


def two_steps(config: Config) -> StepMetrics:
    """The metrics of the second step of a config on one device, on the host; the two losses differ."""
    data = open_data(config)
    config = config.with_vocabulary_size(data.vocabulary.size)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
    state, step = init_state(config, mesh, optimizer), make_train_step(config, mesh, optimizer)
    found = []
    with contextlib.closing(Loader(data.train, config.train.batch_size)) as loader:
        for _ in range(2):
            batch, _ = next(loader)
            state, metrics = step(state, shard_batch(batch, mesh))
            found.append(jax.device_get(metrics))
    assert np.isfinite([metrics.loss for metrics in found]).all()
    assert found[0].loss != found[1].loss
    return found[1]
