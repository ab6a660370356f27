"""The benchmark of acting runs from end to end, and its uncached way says what the cached one says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from exported_agents import exported, images

from agent_jax.policy import Policy


def load_benchmark(root: Path):
    spec = importlib.util.spec_from_file_location("act_latency", root / "benchmarks" / "act_latency.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_all_ways_are_timed_and_those_of_one_window_agree(
        root: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    benchmark = load_benchmark(root)
    made, folder, _ = exported(tmp_path_factory.getbasetemp(), "images")
    arguments = ["--checkpoint", made.path, "--folder", folder, "--domain", "table", "--batch", "2", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["act_latency", *map(str, arguments), "--json", str(tmp_path / "found.json")])
    monkeypatch.setattr(benchmark, "TEXT", "go")
    benchmark.main()
    found = json.loads((tmp_path / "found.json").read_text())["seconds"]["2"]
    assert set(found) == {"sliding", "ahead", "flushed", "uncached", "naive", "pytorch", "generate"}
    domain = made.domains["table"]
    assert domain.state is not None
    state = {key: np.zeros(shape, dtype) for key, (shape, dtype) in domain.state.spec.fields.items()}
    policy = Policy.load(made.path, domain="table")
    slow = [benchmark.uncached(made.path, domain, ["go"], every=every) for every in (False, True)]
    agent = benchmark.torch_agent.Agent.load(folder)
    other = benchmark.generate(folder, agent, "table", ["go"])
    for image in images(made, 4):
        policy.act([image], ["go"], [0], [state])
        assert [act([image], [state])[0].tolist() for act in slow] == [policy.last_ids[0].tolist()] * 2
        said = other([image], [state])[0]
        assert policy.last_ids[0].tolist()[1 : 1 + len(said)] == said[: len(policy.last_ids[0]) - 1]
