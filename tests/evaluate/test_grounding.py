"""Policies that read other instructions than the environment's, on the real BabyAI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_babyai import tiny_agent

from agent_jax.config import ClosedLoopConfig
from agent_jax.envs import Action, load
from agent_jax.envs.workers.simulators import Simulators
from agent_jax.evaluate.__main__ import main
from agent_jax.evaluate.closed_loop import closed_loop
from agent_jax.evaluate.grounding import InstructionAudit
from agent_jax.evaluate.statistics import paired_summary

pytest.importorskip("minigrid")

babyai = load("babyai")
SEED = ClosedLoopConfig().seed


class Obedient:
    """Does what it reads: minigrid's bot with the instruction that it reads, in a copy of each episode."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._bots: dict[int, Any] = {}

    def reset(self, env_ids: Any) -> None:
        pass

    def act(self, images: Any, instructions: Any, env_ids: Any, states: Any = None) -> list[Action]:
        actions = []
        for text, i in zip(instructions, env_ids, strict=True):
            if i not in self._bots or self._bots[i][2] != text:
                copy = babyai.make(self._level)
                copy.reset(seed=SEED + i)
                verb, _, color, kind = babyai._ONE_OBJECT.fullmatch(text).groups()
                copy.simulator.instrs = babyai._VERBS[verb](babyai.ObjDesc(kind, color))
                copy.simulator.instrs.reset_verifier(copy.simulator)
                self._bots[i] = copy, babyai.Expert(copy), text
            copy, bot, _ = self._bots[i]
            actions.append(bot.act())
            copy.step(actions[-1])
        return actions


@pytest.fixture(scope="module")
def here() -> Iterator[Simulators]:
    with Simulators("babyai") as simulators:
        yield simulators


def test_an_agent_that_obeys_fails_where_the_instruction_names_another_object() -> None:
    config, logged = ClosedLoopConfig(environment="babyai", episodes={"GoToLocal": 6}), []
    report = closed_loop(config, {"greedy": Obedient("GoToLocal")}, per_episode=True, log=logged.append,
                         instructions=("contradict", "as-is"))["GoToLocal"]
    assert list(report) == ["greedy", "greedy-contradict", "random", "random_moves", "bot"]
    as_is, wrong = report["greedy"], report["greedy-contradict"]
    assert (as_is["instruction"], as_is["success"], "as_is" in as_is) == ("as-is", 1.0, False)
    assert (wrong["instruction"], wrong["left_out"]) == ("contradict", [])
    assert wrong["goals"]["contradict"]["success"] == 1.0
    assert as_is["goals"]["contradict"]["success"] < 1.0
    assert wrong["success"] < 1.0
    pairs = wrong["as_is"]
    assert (pairs["difference"], pairs["gained"]) == (wrong["success"] - 1.0, 0)
    for one in wrong["per_episode"]:
        assert one["read"] != one["instruction"]
        assert one["done"] == [True]
    assert "goals" not in report["bot"]
    assert "greedy-contradict" in logged[-1]
    assert f"{pairs['difference']:+.1%}" in logged[-1]


def test_each_kind_of_instruction_is_decided_by_the_seed_alone(here: Simulators) -> None:
    kinds = ("as-is", "empty", "swap", "paraphrase", "contradict")
    few, many = (InstructionAudit.of(here, babyai, "PickupLoc", range(SEED, SEED + n), kinds) for n in (3, 8))
    with Simulators("babyai", processes=1) as elsewhere:
        other = InstructionAudit.of(elsewhere, babyai, "PickupLoc", range(SEED + 1, SEED + 3), kinds)
    environment = babyai.make("PickupLoc")
    for kind in kinds[1:]:
        assert few.read(kind) == [many.read(kind)[i] for i in range(len(few.read(kind)))]
        shared = [seed for seed in other.seeds(kind) if seed in few.seeds(kind)]
        assert [few.read(kind)[few.seeds(kind).index(seed)] for seed in shared] == other.read(kind)
    assert set(many.read("empty")) == {""}
    for kind in ("swap", "contradict"):
        for seed, text in zip(many.seeds(kind), many.read(kind), strict=True):
            environment.reset(seed=seed)
            assert text.startswith("pick up ")
            assert text.split()[3:] != environment.instruction.split()[3:]
    for seed, text in zip(many.seeds("paraphrase"), many.read("paraphrase"), strict=True):
        environment.reset(seed=seed)
        named = set(environment.instruction.split()) - {"pick", "up"}
        assert named <= set(text.split())
        assert not text.startswith("pick up")


def test_a_task_with_one_instruction_takes_that_of_another_task(here: Simulators) -> None:
    audit = InstructionAudit.of(here, babyai, "GoToRedBallGrey", [SEED], ("swap",))
    assert audit.read("swap")[0] != "go to the red ball"
    audit = InstructionAudit.of(here, babyai, "GoToRedBallGrey", [SEED], ("swap",),
                                evaluated=("GoToRedBallGrey", "PickupLoc"))
    assert audit.read("swap")[0].startswith("pick up")


def test_a_kind_that_no_episode_has_is_refused(here: Simulators) -> None:
    with pytest.raises(ValueError, match=r"contradict: found none for 2 episodes of the task 'GoToObj'"):
        InstructionAudit.of(here, babyai, "GoToObj", [SEED, SEED + 1], ("contradict",))
    config = ClosedLoopConfig(environment="metaworld", episodes={"reach-v3": 1})
    pytest.importorskip("metaworld")
    with pytest.raises(ValueError, match=r"'metaworld' has no contradict: .* choose among as-is, empty, swap"):
        closed_loop(config, {}, instructions=("contradict",))


def test_the_paired_interval_and_test_equal_those_of_the_literature() -> None:
    # Newcombe 1998, table II, example with e=36, f=12, g=2, h=0 of 50: difference 0.2, interval 0.0569 to 0.3404.
    first = np.array([True] * 48 + [False] * 2)
    second = np.array([True] * 36 + [False] * 12 + [True] * 2)
    found = paired_summary(second, first)
    assert (found["lost"], found["gained"], found["episodes"]) == (2, 12, 50)
    assert found["difference"] == pytest.approx(0.2)
    assert found["ci95"] == pytest.approx([0.0569, 0.3404], abs=5e-5)
    assert found["p"] == pytest.approx(2 * sum((1, 14, 91)) / 2**14)
    equal = paired_summary(first, first)
    assert (equal["difference"], equal["p"]) == (0.0, 1.0)
    with pytest.raises(ValueError, match="expected equally many"):
        paired_summary(first, first[1:])


def test_the_command_prints_the_audit_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent, written = str(tiny_agent(tmp_path / "agent").path), tmp_path / "found.json"
    common = ["closed-loop", "--checkpoint", agent, "--env", "babyai", "--task", "GoToLocal", "--episodes", "2",
              "--processes", "0"]
    assert main([*common, "--instruction", "as-is", "empty", "swap", "--json", str(written)]) == 0
    printed = capsys.readouterr().out
    assert "minus as-is" in printed
    found = json.loads(written.read_text())["tasks"]["GoToLocal"]
    assert list(found) == ["greedy", "greedy-empty", "greedy-swap"]
    assert [one["read"] for one in found["greedy-empty"]["per_episode"]] == ["", ""]
    assert found["greedy-swap"]["as_is"]["episodes"] == 2
    assert main([*common, "--json", str(written)]) == 0
    assert "minus as-is" not in capsys.readouterr().out
    plain = json.loads(written.read_text())["tasks"]["GoToLocal"]["greedy"]
    assert set(plain) == {"success", "episodes", "ci95", "mean_steps", "lost", "per_episode"}
