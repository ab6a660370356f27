from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from data_stores import CAMERAS, babyai_domain, language_table_domain

from agent_jax.config import ClosedLoopConfig
from agent_jax.envs import Action, load
from agent_jax.evaluate.closed_loop import check_domain, closed_loop, format_table, means, without_episodes
from agent_jax.evaluate.outcomes import RolloutRecording

pytest.importorskip("minigrid")

babyai = load("babyai")


class Idle:
    """Walks in even episodes, does nothing in odd ones."""

    def reset(self, env_ids: Any) -> None:
        pass

    def act(self, images: Any, instructions: Any, env_ids: Any, states: Any = None) -> list[Action]:
        return [{"action": np.int64(6 if i % 2 else 2)} for i in env_ids]


def test_the_report_has_each_policy_and_baseline_of_each_task_and_is_printed() -> None:
    logged: list[str] = []
    config = ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 4, "GoToLocal": 3})
    report = closed_loop(config, {"greedy": Idle()}, log=logged.append)
    assert list(report) == ["GoToObj", "GoToLocal"]
    for task, episodes in config.episodes.items():
        assert set(report[task]) == {"greedy", "random", "random_moves", "bot"}
        bot = report[task]["bot"]
        assert (bot["success"], bot["episodes"], bot["lost"]) == (1.0, episodes, [])
        assert 0 < bot["ci95"][0] < bot["ci95"][1] == pytest.approx(1)
        assert report[task]["greedy"]["success"] < 1
    assert len(logged) == 2 * 4 + 1
    assert logged[-1] == format_table(report)


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    config = ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 5})
    reports = [closed_loop(dataclasses.replace(config, processes=processes), {"greedy": Idle()}, log=lambda line: None,
                           concurrent=2) for processes in (0, 1, 2)]
    assert reports[0] == reports[1] == reports[2]


def test_recordings_are_passed_on_after_each_task_and_baselines_can_be_off() -> None:
    config = ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 3, "GoToLocal": 1})
    received: list[Any] = []
    report = closed_loop(config, {"greedy": Idle()}, record=2, baselines=False, log=received.append,
                         watch=received.append)
    assert [one.task if isinstance(one, RolloutRecording) else one[:20] for one in received[:-1]] == [
        "GoToObj", "GoToObj", "closed loop: GoToObj", "GoToLocal", "closed loop: GoToLoc"]
    assert set(report["GoToObj"]) == {"greedy"}


def test_actions_are_reported_for_failures_first_and_up_to_the_limit() -> None:
    config = ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 4})
    report = closed_loop(config, {"greedy": Idle()}, baselines=False, per_episode=True, traced=3,
                          log=lambda line: None)
    episodes = report["GoToObj"]["greedy"]["per_episode"]
    assert [one["seed"] for one in episodes] == [config.seed + i for i in range(4)]
    order = sorted(range(4), key=lambda i: (episodes[i]["success"], i))
    assert ["actions" in episodes[i] for i in order] == [True, True, True, False]
    for i in order[:3]:
        assert episodes[i]["actions"] == [{"action": 6 if i % 2 else 2}] * episodes[i]["steps"]
        assert "probabilities" not in episodes[i]  # the policy has none
    assert without_episodes(report) == closed_loop(config, {"greedy": Idle()}, baselines=False, log=lambda line: None)


def test_episodes_are_repeated_with_the_next_seeds_and_tasks_have_a_mean() -> None:
    config = ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 2, "GoToLocal": 2})
    logged: list[str] = []
    report = closed_loop(config, {"greedy": Idle()}, baselines=False, per_episode=True, repeats=3, log=logged.append)
    rates = []
    for policies in report.values():
        greedy = policies["greedy"]
        success = [one["success"] for one in greedy["per_episode"]]
        assert [one["seed"] for one in greedy["per_episode"]] == [config.seed + i for i in range(6)]
        assert greedy["repeats"] == [sum(success[i : i + 2]) / 2 for i in (0, 2, 4)]
        assert greedy["std"] == pytest.approx(np.std(greedy["repeats"], ddof=1))
        rates.append(greedy["repeats"])
    mean = means(report)["greedy"]
    assert mean["success"] == pytest.approx(np.mean(rates))
    assert mean["repeats"] == pytest.approx(np.mean(rates, axis=0).tolist())
    assert " ".join(logged[-1].splitlines()[-1].split()) == (
        f"mean of 2 tasks greedy {mean['success']:.1%} std {mean['std']:.1%} of 3 repeats")
    once = closed_loop(config, {"greedy": Idle()}, baselines=False, log=logged.append)
    assert "repeats" not in once["GoToObj"]["greedy"]
    assert means(once)["greedy"].keys() == {"success", "tasks"}
    with pytest.raises(ValueError, match="repeats=0: expected at least 1"):
        closed_loop(config, {"greedy": Idle()}, repeats=0)


def test_the_table_is_aligned() -> None:
    report = {"success": 0.745, "episodes": 200, "ci95": [0.68, 0.8], "mean_steps": 21.04}
    table = format_table({"GoToLocal": {"greedy": report, "bot": {**report, "success": 1.0, "ci95": [0.98, 1.0]}}})
    assert table.splitlines() == [
        "task       policy  success     95% interval  episodes  steps",
        "------------------------------------------------------------",
        "GoToLocal  greedy    74.5%   68.0% to 80.0%       200   21.0",
        "           bot      100.0%  98.0% to 100.0%       200   21.0",
    ]


def test_invalid_configs_are_errors() -> None:
    with pytest.raises(ValueError, match="'GoToObj': found 0 episodes"):
        closed_loop(ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 0}), {})
    with pytest.raises(ValueError, match="policies: found bot"):
        closed_loop(ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 1}), {"bot": Idle()})


def test_a_domain_that_does_not_fit_the_environment_is_an_error_with_the_differences() -> None:
    check_domain(babyai_domain(), babyai)
    with pytest.raises(ValueError, match=r"domain 'table' .* environment 'babyai': ActionSpec, .*has no StateSpec"):
        check_domain(language_table_domain(), babyai)
    with pytest.raises(ValueError, match=r"cameras: .* front, wrist; the environment has rgb"):
        check_domain(babyai_domain(cameras=CAMERAS), babyai)
    config = ClosedLoopConfig(environment="babyai", episodes={"GoToObj": 1})
    with pytest.raises(ValueError, match="cannot act"):
        closed_loop(config, {"greedy": Idle()}, domain=language_table_domain())
