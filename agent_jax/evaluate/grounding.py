"""Does the agent read its instruction? Success with other instructions, on the same seeds (`envs/instructions.py`).

other instructions of the episodes --run_policy--> result by kind --> differences from "as-is" by pairs of episodes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.data.pipeline.domains import Domain
from agent_jax.envs import EnvironmentModule
from agent_jax.envs.instructions import AS_IS, EMPTY, KINDS, WRONG
from agent_jax.envs.workers.simulator_pool import EpisodeStatus
from agent_jax.envs.workers.simulators import Command, EpisodeInterrupted, Simulators
from agent_jax.evaluate.outcomes import TaskResult
from agent_jax.evaluate.statistics import paired_summary, success_summary
from agent_jax.policy.observation import NO_INSTRUCTION
from agent_jax.text_table import ruled

Texts = dict[int, str]  # by the episode's seed; episodes without such an instruction are missing


class InstructionAudit:
    """The instructions of the episodes of one task by kind, and what comes of them."""

    def __init__(self, task: str, seeds: Sequence[int], kinds: Sequence[str], texts: Mapping[str, Texts]) -> None:
        self._task, self._all_seeds, self._kinds, self._texts = task, seeds, kinds, texts
        self._as_is: dict[str, TaskResult] = {}  # by policy

    @classmethod
    def of(cls, simulators: Simulators, module: EnvironmentModule, task: str, seeds: Sequence[int],
           kinds: Sequence[str], domain: Domain | None = None, evaluated: Sequence[str] = ()) -> InstructionAudit:
        """Choose the instructions of all episodes.

        Args:
            simulators: of the environment.
            module: of the environment.
            task: of the environment.
            seeds: of the episodes; each one decides on its texts.
            kinds: of instructions.
            domain: of the policy, which must be able to read the texts; None: not checked.
            evaluated: the tasks of this evaluation. If all episodes of `task` have the same instruction, another of
                them, or one of the task's suite, lends its own.

        Raises:
            ValueError: no episode has an instruction of a kind, one is longer than the domain reads, or the episodes
                of the task are chains of instructions.
        """
        suite = next((names for names in module.TASKS.values() if task in names), ())
        others = tuple(name for name in evaluated if name != task) or tuple(name for name in suite if name != task)
        texts: dict[str, Texts] = {}
        for kind in kinds:
            if kind == EMPTY:
                texts[kind] = dict.fromkeys(seeds, NO_INSTRUCTION)
            elif kind != AS_IS:
                texts[kind] = _choose(simulators, task, seeds, kind, others)
                if domain is not None:
                    for text in set(texts[kind].values()):
                        domain.text_ids(text)
        return cls(task, seeds, kinds, texts)

    @staticmethod
    def name(policy: str, kind: str) -> str:
        """The name of a policy in the report when it reads instructions of this kind."""
        return policy if kind == AS_IS else f"{policy}-{kind}"

    def seeds(self, kind: str) -> Sequence[int]:
        """The seeds of the episodes that have an instruction of this kind."""
        return [seed for seed in self._all_seeds if kind == AS_IS or seed in self._texts[kind]]

    def read(self, kind: str) -> list[str]:
        """What the policy reads in each of these episodes; []: the environment's instruction."""
        return [] if kind == AS_IS else [self._texts[kind][seed] for seed in self.seeds(kind)]

    def goals(self, kind: str) -> list[list[str]]:
        """The wrong instructions that are checked as goals in each of these episodes; []: none are.

        "as-is" has those of all kinds: they show how often the agent does what it has not read.
        """
        goals = self._goal_kinds(kind)
        return [[self._texts[goal].get(seed, "") for goal in goals] for seed in self.seeds(kind)] if goals else []

    def _goal_kinds(self, kind: str) -> list[str]:
        return [goal for goal in WRONG if goal in self._texts and kind in (AS_IS, goal)]

    def summary(self, policy: str, kind: str, result: TaskResult) -> dict[str, Any]:
        """What the report has beside success; {} if "as-is" is the only kind.

        Returns:
            {"instruction": kind, "left_out": seeds of episodes without an instruction of this kind, "as_is":
            `paired_summary` with the result of "as-is", which must come first, "goals": {kind: `success_summary` of
            doing what that wrong instruction says, where the environment can tell}}.
        """
        if tuple(self._kinds) == (AS_IS,):
            return {}
        found: dict[str, Any] = {"instruction": kind}
        if kind == AS_IS:
            self._as_is[policy] = result
        else:
            readable = set(self.seeds(kind))
            found["left_out"] = [seed for seed in self._all_seeds if seed not in readable]
            if policy in self._as_is and (paired := _pair(self._as_is[policy], result)):
                found["as_is"] = paired
        rates = {}
        for number, goal in enumerate(self._goal_kinds(kind)):
            done = [outcome.done[number] for outcome in result.outcomes if outcome.done[number] is not None]
            if done:
                rates[goal] = success_summary(np.array(done, bool))
        return found | ({"goals": rates} if rates else {})


def _choose(simulators: Simulators, task: str, seeds: Sequence[int], kind: str, others: Sequence[str]) -> Texts:
    """The instruction of one kind of each episode that has one."""
    texts: Texts = {}
    waiting = list(seeds)
    while waiting:
        answers = simulators.exchange({
            i: Command("reword", {"task": task, "seed": seed, "kind": kind, "tasks": others})
            for i, seed in enumerate(waiting)})
        for seed, answer in zip(waiting, answers.values(), strict=True):
            if not isinstance(answer, EpisodeStatus):
                continue
            if answer.chain:
                raise ValueError(f"instruction {kind}: an episode of the task {task!r} is a chain of {answer.chain[1]} "
                                 f"instructions, expected one; choose another task, or {AS_IS} and {EMPTY}")
            if answer.instruction:
                texts[seed] = answer.instruction
        waiting = [seed for seed, answer in zip(waiting, answers.values(), strict=True)
                   if isinstance(answer, EpisodeInterrupted)]
    if not texts:
        raise ValueError(f"instruction {kind}: found none for {len(seeds)} episodes of the task {task!r}, expected one "
                         "for some of them; leave this kind out, choose another task, or evaluate several")
    return texts


def _pair(as_is: TaskResult, other: TaskResult) -> dict[str, Any]:
    """`paired_summary` of the seeds that both results have; {} if they share none."""
    first, second = (dict(zip(one.seeds, map(bool, one.success), strict=True)) for one in (as_is, other))
    common = [seed for seed in first if seed in second]
    if not common:
        return {}
    return paired_summary(np.array([first[seed] for seed in common]), np.array([second[seed] for seed in common]))


def format_audit(report: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Success by task and instruction, its difference from "as-is", and how often the agent did what a wrong one says.

    Args:
        report: of the closed loop; policies without an instruction (baselines) are left out.
    """
    rows: list[tuple[str, ...]] = [("task", "policy", "success", "minus as-is", "95% interval", "p", "obeys", "as-is")]
    for task, policies in report.items():
        audited = {name: summary for name, summary in policies.items() if summary.get("instruction") in KINDS}
        unread: Mapping[str, Any] = {}
        for name, summary in audited.items():
            kind, goals = summary["instruction"], summary.get("goals", {})
            unread = goals if kind == AS_IS else unread
            difference = ("", "", "")
            if paired := summary.get("as_is"):
                low, high = paired["ci95"]
                difference = f"{paired['difference']:+.1%}", f"{low:+.1%} to {high:+.1%}", f"{paired['p']:.2g}"
            obeyed = (f"{rates[kind]['success']:.1%}" if kind in rates else "" for rates in (goals, unread))
            first = name == next(iter(audited))
            rows.append((task if first else "", name, f"{summary['success']:.1%}", *difference, *obeyed))
    return (f"{ruled(rows, words=2)}\n"
            "p: McNemar's exact test on the same seeds. obeys: share of episodes in which the agent did what the wrong "
            "instruction says; the last column: did the same while it read the right one")
