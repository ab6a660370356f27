"""Simulators in worker processes: the same answers as in this process, and the death of a worker."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

from agent_jax.config import ClosedLoopConfig
from agent_jax.envs.workers.simulator_pool import EpisodeStatus
from agent_jax.envs.workers.simulators import Command, EpisodeInterrupted, Simulators, WorkerDied
from agent_jax.evaluate.rollouts import run_policy

pytest.importorskip("minigrid")

SEED = ClosedLoopConfig().seed


def begin(slot: int, task: str = "GoToLocal") -> Command:
    return Command("begin", {"slot": slot, "task": task, "seed": SEED + slot})


def step(slot: int, action: int) -> Command:
    return Command("step", {"slot": slot, "action": {"action": np.int64(action)}})


def test_workers_give_the_same_answers_as_this_process() -> None:
    with Simulators("babyai", 14) as here, Simulators("babyai", 14, processes=2, keys=("rgb",)) as workers:
        for commands in ({slot: begin(slot) for slot in range(3)}, {slot: step(slot, 2) for slot in (0, 2)}):
            ours, theirs = here.exchange(commands), workers.exchange(commands)
            assert list(ours) == list(theirs) == list(commands)
            for slot in commands:
                mine, other = ours[slot], theirs[slot]
                assert isinstance(mine, EpisodeStatus)
                assert isinstance(other, EpisodeStatus)
                assert (mine.instruction, mine.steps, mine.over, mine.success) == (
                    other.instruction, other.steps, other.over, other.success)
                np.testing.assert_array_equal(mine.observation["rgb"], other.observation["rgb"])
                assert other.observation["rgb"].shape == (14, 14, 3)


def test_a_worker_that_dies_loses_one_episode_and_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    with Simulators("babyai", 14, processes=2) as workers:
        workers.exchange({slot: begin(slot) for slot in range(4)})
        # An unknown action: the simulator raises in the worker of slots 1 and 3.
        answers = workers.exchange({0: step(0, 2), 1: step(1, 2), 2: step(2, 2), 3: step(3, 99)})
        assert isinstance(answers[0], EpisodeStatus)
        assert isinstance(answers[2], EpisodeStatus)
        assert answers[3] == WorkerDied("exit code 1")
        assert answers[1] == EpisodeInterrupted()  # it was in the same process
        again = workers.exchange({0: step(0, 2), 1: begin(1)})
        assert isinstance(again[0], EpisodeStatus)
        assert again[0].steps == 2
        assert isinstance(again[1], EpisodeStatus)
    assert "ValueError" in capfd.readouterr().err  # the worker's own message


def test_a_killed_worker_is_reported_with_the_seed_and_the_others_continue() -> None:
    class Killer:
        """Kills one worker in its third call."""

        def __init__(self, workers: Simulators) -> None:
            self.workers, self.calls, self.begun = workers, 0, []

        def reset(self, env_ids: Any) -> None:
            self.begun += env_ids

        def act(self, images: Any, instructions: Any, env_ids: Any, states: Any = None) -> list[dict[str, Any]]:
            self.calls += 1
            if self.calls == 3:
                process = self.workers._workers[1].process
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            return [{"action": np.int64(6)} for _ in env_ids]

    with Simulators("babyai", 14, processes=2) as workers:
        policy = Killer(workers)
        result = run_policy(policy, workers, "GoToObj", range(SEED, SEED + 6), concurrent=4)
    assert [(lost.seed, lost.reason) for lost in result.lost] == [(SEED + 1, "signal 9")]
    assert result.seeds == (SEED, *range(SEED + 2, SEED + 6))
    assert (result.steps == 64).all()
    assert policy.begun.count(3) == 2  # it was in the same process and began again


def test_a_worker_that_does_not_start_and_a_negative_number_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"'babyai': .*\(exit code 1\)"):
        Simulators("babyai", processes=1)
    with pytest.raises(ValueError, match="processes=-1"):
        Simulators("babyai", processes=-1)
