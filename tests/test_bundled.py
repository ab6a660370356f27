"""The agent that comes with the package acts, and its name never hides a path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent_jax.bundled import bundled_agent
from agent_jax.envs import babyai
from agent_jax.hub import located_agent
from agent_jax.policy import Policy


def test_it_goes_to_what_its_instruction_names():
    policy = Policy.load("babyai-small")
    environments = [babyai.make("GoToLocalS8N2", 56) for _ in range(8)]
    seen = [environment.reset(seed=77 + number)[0]["rgb"] for number, environment in enumerate(environments)]
    running, successes = list(range(8)), 0
    for _ in range(30):
        actions = policy.act([seen[number] for number in running],
                             [environments[number].instruction for number in running], running)
        for number, action in zip(list(running), actions, strict=True):
            observation, _, terminated, truncated, info = environments[number].step(action)
            seen[number] = np.array(observation["rgb"])
            if terminated or truncated:
                running.remove(number)
                successes += info["success"]
        if not running:
            break
    assert successes >= 7


def test_it_is_small_and_names_no_place_of_the_machine_that_made_it():
    folder = Path(bundled_agent("babyai-small"))
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 3_000_000
    for file in files:
        assert b"/work/" not in file.read_bytes()


def test_a_path_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert located_agent("babyai-small") == bundled_agent("babyai-small")
    assert bundled_agent("other") == "other"
    assert bundled_agent("runs/babyai-small") == "runs/babyai-small"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "babyai-small").mkdir()
    assert bundled_agent("babyai-small") == "babyai-small"
