"""The missions of the transfer study's environment with held-out pairs of colour and kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_jax.envs import load

STUDY = Path(__file__).resolve().parents[2] / "benchmarks" / "study"


def test_each_part_has_its_own_missions_and_each_seed_its_own_episode():
    module = load(str(STUDY / "held_out_pairs.py"))
    named = {}
    for part in ("known", "new"):
        environment = module.make(f"GoToLocalS5N2-{part}", 56)
        missions = []
        for seed in range(60):
            environment.reset(seed=seed)
            missions.append(environment.instruction)
        environment.reset(seed=7)
        assert environment.instruction == missions[7]
        named[part] = {tuple(mission.split()[-2:]) for mission in missions}
    assert not named["known"] & named["new"]
    for word in (0, 1):  # every colour and kind is known from other pairs
        assert {pair[word] for pair in named["new"]} <= {pair[word] for pair in named["known"]}


def test_a_level_without_a_part_is_refused():
    with pytest.raises(ValueError, match="'GoToLocal'.*-known or -new"):
        load(str(STUDY / "held_out_pairs.py")).make("GoToLocal", 56)
