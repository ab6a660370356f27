"""The exported agent is shown what evaluation shows ours: its domain's cameras and state, as large as they were."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from types import SimpleNamespace
from typing import Any

import exported_closed_loop as benchmark
import numpy as np
import pytest
from data_stores import language_table_domain

from agent_jax.actions import LANGUAGE_TABLE, LANGUAGE_TABLE_STATE
from agent_jax.config import Config
from agent_jax.evaluate.rollouts import ObservationKeys, TaskResult


def test_both_agents_are_given_state_and_images_as_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    config, domain, shown = Config(), language_table_domain(), []
    demonstrations = dataclasses.replace(config.data.demonstrations, environment="table", image_size=40)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, demonstrations=demonstrations))
    module = SimpleNamespace(NAME="table", ACTION_SPEC=LANGUAGE_TABLE, STATE_SPEC=LANGUAGE_TABLE_STATE,
                             CAMERAS=("rgb",), ONE_A_PROCESS=True)

    def simulators(environment: str, image_size: int, **options: Any) -> Any:
        shown.append((environment, image_size, options["keys"]))
        return contextlib.nullcontext()

    def run_policy(policy: Any, simulators: Any, task: str, seeds: Any, **options: Any) -> TaskResult:
        shown.append((options["keys"], options["concurrent"]))
        return TaskResult(task, tuple(seeds), np.ones(2, bool), np.ones(2, np.int64))

    def warm_up(sizes: Any) -> None:
        shown.append(sizes)

    load = lambda *arguments, **options: SimpleNamespace(domain=domain, config=config, step=7,  # noqa: E731
                                                         warm_up=warm_up)
    monkeypatch.setattr(benchmark, "load", lambda name: module)
    folder_domain = SimpleNamespace(cameras=["rgb"], state=SimpleNamespace(fields=LANGUAGE_TABLE_STATE.fields))
    monkeypatch.setattr("agent_jax.evaluate.checkpoints.TrainedRun", SimpleNamespace(load=load))
    monkeypatch.setattr("agent_jax.policy.Policy", SimpleNamespace(load=load))
    monkeypatch.setattr("agent_jax.convert.pytorch.torch_agent.Policy",
                        lambda *arguments, **options: SimpleNamespace(domain=folder_domain))
    monkeypatch.setattr(benchmark, "Simulators", simulators)
    monkeypatch.setattr(benchmark, "run_policy", run_policy)
    monkeypatch.setattr(sys, "argv", ["exported_closed_loop", "--checkpoint", "a", "--folder", "b", "--environment",
                                      "table", "--episodes", "2"])
    assert benchmark.main() == 0
    keys = ObservationKeys(("rgb",), tuple(LANGUAGE_TABLE_STATE.fields))
    assert shown == [(1,)] + 2 * [("table", 40, keys.all), (keys, 1)]
