"""Repeats evaluation episodes of a run's report from their seeds, for `study verify`.

    report.json: task, policy, seed -> success, steps      checkpoint, simulator --the same seed--> the same?

The drawn episodes act together, in other batches than in the run, which can change an action where two are nearly
equal. So where an outcome differs, all episodes of that task and policy act again, in the batches of the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.config import Config
from agent_jax.envs import NAMES, Action, load
from agent_jax.envs.workers.simulators import Simulators
from agent_jax.evaluate.closed_loop import at_a_time
from agent_jax.evaluate.in_training import ActingDomain, acting_domains
from agent_jax.evaluate.rollouts import CONCURRENT, ObservationKeys, run_policy
from agent_jax.policy import Policy
from agent_jax.study.agreement import DIFFERENT, EQUAL, compare
from agent_jax.study.verify_steps import config_of

POLICIES = ("greedy", "sampled")  # of the report of a run; its baselines do not depend on the training
_OUTCOME = ("success", "steps", "instruction")


@dataclasses.dataclass(frozen=True)
class RecordedEpisode:
    """An episode of report.json."""

    acting: ActingDomain
    task: str
    policy: str
    outcome: Mapping[str, Any]  # of `per_episode`

    @property
    def number(self) -> int:
        """Its place in the evaluation: sampling depends on it."""
        return self.outcome["seed"] - self.acting.config.seed


def check_environments(config: Config, where: Any) -> None:
    """Check that a run acts in environments of this package: a checkpoint must not choose what is imported.

    Raises:
        ValueError: names the environment.
    """
    loop = config.closed_loop
    names = [loop.environment] if loop.environment else [config.data.demonstrations_of(name).environment
                                                         for name in loop.domains]
    if others := [name for name in names if name and name not in NAMES]:
        raise ValueError(f"{where}: the run acts in {', '.join(map(repr, others))}, which is not an environment of "
                         f"this package and is not imported; expected one of {', '.join(NAMES)}")


def recorded_episodes(report: Mapping[str, Any], config: Config, where: Path) -> list[RecordedEpisode]:
    """All episodes of the policies of a report.

    Raises:
        ValueError: the report lacks outcomes by seed, or the run acted in an environment outside this package.
    """
    check_environments(config, where)
    found = []
    for acting in acting_domains(config) if config.closed_loop.acts else ():
        tasks = report.get("closed_loop", {})
        for task, policies in (tasks.get(acting.name, {}) if acting.name else tasks).items():
            for policy in POLICIES:
                if policy not in policies:
                    continue
                if "per_episode" not in policies[policy]:
                    raise ValueError(f"{where}: closed_loop, task {task!r}, {policy}: found no per_episode, expected "
                                     "the outcome of each seed; the report is of an earlier version")
                found += [RecordedEpisode(acting, task, policy, one) for one in policies[policy]["per_episode"]]
    return found


def verify_episodes(workdir: Path, report: Mapping[str, Any], count: int, rng: np.random.Generator
                    ) -> list[dict[str, Any]]:
    """Repeat at most `count` episodes, drawn at random.

    Returns:
        For each {"domain", "task", "policy", "seed", "verdict", "differences", "batch": "drawn" or "whole task"}.

    Raises:
        ValueError, FileNotFoundError: the report cannot be used, or the checkpoint that acted is gone.
    """
    where = workdir / "report.json"
    config = config_of({"config": report.get("config"), "step": report.get("steps")}, where)
    episodes = recorded_episodes(report, config, where)
    drawn = [episodes[i] for i in sorted(rng.permutation(len(episodes))[:count])]
    step = (report.get("best") or {}).get("step") or report["steps"]
    results = []
    policies: dict[str, dict[str, Policy]] = {}  # by domain
    for acting, task, name in dict.fromkeys((one.acting.name, one.task, one.policy) for one in drawn):
        members = [one for one in drawn if (one.acting.name, one.task, one.policy) == (acting, task, name)]
        domain = members[0].acting
        if acting not in policies:
            greedy = Policy.load(workdir, domain=domain.domain, step=step)
            sampled = greedy.with_temperature(config.closed_loop.temperature, seed=config.seed)
            policies = {acting: {"greedy": greedy, "sampled": sampled}}  # one domain in memory
        results += _repeat(members, policies[acting][name])
    return results


def _repeat(members: Sequence[RecordedEpisode], policy: Policy) -> list[dict[str, Any]]:
    """Results of episodes of one task and policy."""
    acting, task, keys = members[0].acting, members[0].task, ObservationKeys.of(policy.domain)
    concurrent = at_a_time(load(acting.config.environment), CONCURRENT, acting.config.processes)
    first, total = acting.config.seed, acting.config.episodes[task]

    with Simulators(acting.config.environment, acting.image_size, processes=acting.config.processes,
                    keys=keys.all) as simulators:

        def outcomes(numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
            """By seed."""
            acted = run_policy(_Numbered(policy, numbers), simulators, task, [first + i for i in numbers], keys=keys,
                               concurrent=concurrent)
            return {one.seed: one.to_json(steps=False) for one in acted.outcomes}

        found, batch = outcomes([one.number for one in members]), "drawn"
        if any(_compared(one, found)[0] != EQUAL for one in members):
            found, batch = outcomes(range(total)), "whole task"
    return [{"domain": policy.domain.name, "task": task, "policy": one.policy, "seed": one.outcome["seed"],
             "verdict": (compared := _compared(one, found))[0], "differences": compared[1], "batch": batch}
            for one in members]


def _compared(episode: RecordedEpisode, found: Mapping[int, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    recorded = {name: episode.outcome.get(name) for name in _OUTCOME}
    seed = episode.outcome["seed"]
    if seed not in found:
        return DIFFERENT, {"outcome": [recorded, "lost: its process died"]}
    return compare(recorded, {name: found[seed][name] for name in _OUTCOME}, 0.0)


class _Numbered:
    """A policy that knows the episodes by their numbers in the run's evaluation."""

    def __init__(self, policy: Policy, numbers: Sequence[int]) -> None:
        self._policy, self._numbers = policy, numbers

    def _of(self, env_ids: Sequence[Any]) -> list[int]:
        return [self._numbers[env_id] for env_id in env_ids]

    def reset(self, env_ids: Sequence[Any]) -> None:
        """As the policy's."""
        self._policy.reset(self._of(env_ids))

    def forget(self, env_ids: Sequence[Any]) -> None:
        """As the policy's."""
        self._policy.forget(self._of(env_ids))

    def act(self, images: Any, instructions: Sequence[str], env_ids: Sequence[Any],
            states: Any = None) -> Sequence[Action | Sequence[Action]]:
        """As the policy's."""
        return self._policy.act(images, instructions, self._of(env_ids), states)
