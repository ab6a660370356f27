"""Closed-loop evaluation: success of policies in a simulator, on seeds that no demonstration has.

The baselines are the environment's expert and random actions, on the same seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.actions.codec import BoundSpec
from agent_jax.config import ClosedLoopConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.envs import EnvironmentModule, load
from agent_jax.envs.instructions import AS_IS, KINDS, check_kinds
from agent_jax.envs.workers.simulator_pool import EXPERT
from agent_jax.envs.workers.simulators import Simulators
from agent_jax.evaluate.grounding import InstructionAudit, format_audit
from agent_jax.evaluate.outcomes import RolloutRecording, TaskResult
from agent_jax.evaluate.rollouts import CONCURRENT, ActingPolicy, ObservationKeys, run_baseline, run_policy
from agent_jax.evaluate.statistics import chain_summary, mean_over_tasks, repeats_summary, success_summary
from agent_jax.help_pages import help_page
from agent_jax.runtime.progress_bar import ProgressBar
from agent_jax.text_table import ruled

# Task -> policy -> success, episodes, ci95, mean_steps, lost; for chains also chain; if requested also per_episode, and
# repeats and their std.
Report = dict[str, dict[str, dict[str, Any]]]

TRACED = 100  # episodes of a task and policy whose actions are reported, shortest failures first: some MB of JSON


def closed_loop(config: ClosedLoopConfig, policies: Mapping[str, ActingPolicy], *, domain: Domain | None = None,
                image_size: int = 0, record: int = 1, watch: Callable[[RolloutRecording], None] | None = None,
                baselines: bool = True, per_episode: bool = False, traced: int = 0, concurrent: int = CONCURRENT,
                repeats: int = 1, instructions: Sequence[str] = (AS_IS,), log: Callable[[str], None] = print) -> Report:
    """Evaluate policies, the environment's random baselines and its expert ("bot") on every task of the config.

    Args:
        config: environment, episodes by task, first seed, processes.
        policies: by their name in the report, e.g. "greedy" and "sampled".
        domain: of the policies; None: they receive only the image "rgb".
        image_size: pixels of the images; 0: the environment's default.
        record: number of episodes to record for each task and policy, failures first.
        watch: called with these recordings after each task of a policy; None: no recordings.
        baselines: whether to run the baselines.
        per_episode: whether the report has seed, success, steps and instruction of each episode.
        traced: number of these episodes reported with actions and probabilities, the shortest failures first.
        concurrent: episodes at a time; at most the number of processes if a process can have only one environment.
        repeats: how many times each task has its number of episodes, each time with the next seeds.
        instructions: kinds of instructions that the policies read (`envs/instructions.py`), each on the same seeds. A
            policy NAME is reported as NAME-KIND where it reads another kind than "as-is".
        log: called with a line after each policy, and with the table at the end.

    Raises:
        ValueError: an unknown environment or task, a task without episodes, `concurrent` or `repeats` below 1, a policy
            named like a baseline, a domain that does not fit the environment, or instructions that it does not have.
        RuntimeError: the simulators cannot be started, or every episode of a task was lost.
    """
    module = load(config.environment)
    names = baseline_names(module)
    if taken := sorted(set(policies) & set(names)):
        raise ValueError(f"policies: found {', '.join(taken)}, expected names other than those of the baselines")
    for task, episodes in config.episodes.items():
        if episodes < 1:
            raise ValueError(f"task {task!r}: found {episodes} episodes to evaluate, expected at least 1")
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: expected at least 1")
    concurrent = at_a_time(module, concurrent, config.processes)
    check_kinds(module, instructions)
    kinds = [kind for kind in KINDS if kind in instructions]  # "as-is", which the others are compared with, is first
    keys = ObservationKeys()
    if domain is not None:
        check_domain(domain, module)
        keys = ObservationKeys.of(domain)
    report: Report = {}
    runs_of_task = len(policies) * len(kinds) + (len(names) if baselines else 0)
    with (Simulators(config.environment, image_size, processes=config.processes, keys=keys.all) as simulators,
          ProgressBar("acting", sum(config.episodes.values()) * repeats * runs_of_task) as progress):
        for task, episodes in config.episodes.items():
            report[task] = {}
            seeds = range(config.seed, config.seed + episodes * repeats)
            audit = InstructionAudit.of(simulators, module, task, seeds, kinds, domain, tuple(config.episodes))
            runs = {audit.name(policy, kind): (policy, kind) for policy in policies for kind in kinds}
            for name in (*runs, *(names if baselines else ())):
                more = {}
                progress.add(0, f"{task}, {name}")
                if name in runs:
                    policy, kind = runs[name]
                    result = run_policy(policies[policy], simulators, task, audit.seeds(kind), keys=keys, name=name,
                                        record=record if watch else 0, trace=per_episode and traced > 0,
                                        action_name=module.action_name, concurrent=concurrent,
                                        read=audit.read(kind), goals=audit.goals(kind), on_end=progress.add)
                    more = audit.summary(policy, kind, result)
                else:
                    result = run_baseline(simulators, task, seeds, name, config.seed)
                    progress.add(len(seeds))
                report[task][name] = _summary(result, name) | more
                if repeats > 1:
                    report[task][name] |= _repeats(result, config.seed, episodes)
                if per_episode:
                    report[task][name]["per_episode"] = _per_episode(result, traced)
                if watch is not None:
                    for recording in result.recordings:
                        watch(recording)
                log(_line(result, name, report[task][name]))
    log(format_table(report))
    if kinds != [AS_IS]:
        log(format_audit(report))
    return report


def at_a_time(module: EnvironmentModule, concurrent: int, processes: int) -> int:
    """The number of episodes at a time: `concurrent`, or fewer if a process can have only one environment.

    Raises:
        ValueError: `concurrent` below 1.
    """
    if concurrent < 1:
        raise ValueError(f"concurrent={concurrent}: expected at least 1 episode at a time")
    return min(concurrent, max(1, processes)) if module.ONE_A_PROCESS else concurrent


def baseline_names(module: EnvironmentModule) -> tuple[str, ...]:
    """The names of an environment's baselines in `closed_loop`."""
    return (*module.RANDOM, *((EXPERT,) if module.HAS_EXPERT else ()))


def check_domain(domain: Domain, module: EnvironmentModule) -> None:
    """Check that a domain fits an environment.

    Raises:
        ValueError: ActionSpec, StateSpec or cameras differ; the message says how.
    """
    wrong = []
    if domain.spec is None:
        wrong.append("the domain has no ActionSpec")
    elif difference := domain.spec.spec.difference(module.ACTION_SPEC):
        wrong.append(f"ActionSpec, the domain's (the environment's): {difference}")
    # A policy need not use the environment's state.
    if domain.state is not None and (difference := _state_difference(domain.state, module)):
        wrong.append(difference)
    if missing := [camera for camera in domain.camera_names if camera not in module.CAMERAS]:
        wrong.append(f"cameras: the domain has {', '.join(missing)}; the environment has "
                     f"{', '.join(module.CAMERAS)}")
    if wrong:
        raise ValueError(f"domain {domain.name!r} cannot act in the environment {module.NAME!r}: {'; '.join(wrong)}. "
                         "Choose the environment whose data it was trained on, or another domain"
                         + help_page("guides/evaluation.md", "closed-loop: act in a simulator"))


def _state_difference(state: BoundSpec, module: EnvironmentModule) -> str:
    """A text for the difference between a domain's state and the environment's; "" if they are equal."""
    if module.STATE_SPEC is not None:
        difference = state.spec.difference(module.STATE_SPEC)
        return f"StateSpec, the domain's (the environment's): {difference}" if difference else ""
    if not module.STATE_SHAPES:
        return "the environment has no StateSpec"
    shapes = {key: shape for key, (shape, _) in state.spec.fields.items()}
    if shapes.items() <= module.STATE_SHAPES.items():
        return ""
    return f"shapes of the state, the domain's (the environment's): {shapes} ({dict(module.STATE_SHAPES)})"


def _summary(result: TaskResult, name: str) -> dict[str, Any]:
    if not result.seeds:
        raise RuntimeError(f"task {result.task!r}, {name}: all {len(result.lost)} episodes were lost because their "
                           f"processes died ({result.lost[0].reason}); their messages are above")
    chain = {} if result.completed is None else {"chain": chain_summary(result.completed, result.instructions)}
    return {**success_summary(result.success), "mean_steps": float(result.steps.mean()), **chain,
            "lost": [dataclasses.asdict(lost) for lost in result.lost]}


def _repeats(result: TaskResult, first_seed: int, episodes: int) -> dict[str, Any]:
    """Success of each repeat of `episodes` consecutive seeds, without repeats of which every episode was lost."""
    repeat = (np.asarray(result.seeds) - first_seed) // episodes
    return repeats_summary(np.asarray([result.success[repeat == number].mean() for number in np.unique(repeat)]))


def means(report: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """`mean_over_tasks` of each policy that acted in every task."""
    tasks = list(report.values())
    return {name: mean_over_tasks([of_task[name] for of_task in tasks])
            for name in (tasks[0] if tasks else ()) if all(name in of_task for of_task in tasks)}


def without_episodes(report: Report) -> Report:
    """The report without its lists of episodes, which are too long for a log."""
    return {task: {name: {key: value for key, value in summary.items() if key != "per_episode"}
                   for name, summary in policies.items()} for task, policies in report.items()}


def _per_episode(result: TaskResult, traced: int) -> list[dict[str, Any]]:
    """Outcomes as JSON, in the order of their seeds."""
    order = sorted(enumerate(result.outcomes), key=lambda one: (one[1].success, one[1].steps, one[0]))
    with_steps = {number for number, _ in order[:traced]}
    return [outcome.to_json(steps=i in with_steps) for i, outcome in enumerate(result.outcomes)]


def _line(result: TaskResult, name: str, summary: Mapping[str, Any]) -> str:
    policy = f" ({result.policy_seconds:.1f} s of them in the policy)" if result.policy_seconds else ""
    line = (f"closed loop: {result.task}, {name}: {summary['success']:.1%} of {summary['episodes']} episodes, "
            f"{result.seconds:.1f} s{policy}")
    lost = [f"\n  lost: seed {lost.seed}, its process died ({lost.reason})" for lost in result.lost]
    return line + "".join(lost)


def format_table(report: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The report as aligned text, a line for each task and policy, and for the mean of several tasks.

    Chains of instructions have a second table.
    """
    rows = [("task", "policy", "success", "95% interval", "episodes", "steps")]
    chains: list[tuple[str, ...]] = []
    for task, policies in report.items():
        for name, summary in policies.items():
            low, high = summary["ci95"]
            first = next(iter(policies)) == name
            rows.append((task if first else "", name, f"{summary['success']:.1%}", f"{low:.1%} to {high:.1%}",
                         str(summary["episodes"]), f"{summary['mean_steps']:.1f}"))
            if "chain" in summary:
                shares = [f"{share['success']:.1%}" for share in summary["chain"]["in_a_row"]]
                chains.append((task if first else "", name, *shares, f"{summary['chain']['mean_length']:.2f}"))
    for name, mean in means(report).items() if len(report) > 1 else ():
        repeats = mean.get("repeats", ())
        spread = f"std {mean['std']:.1%} of {len(repeats)} repeats" if len(repeats) > 1 else ""
        first = name == next(iter(means(report)))
        rows.append((f"mean of {mean['tasks']} tasks" if first else "", name, f"{mean['success']:.1%}", spread, "", ""))
    tables = [ruled(rows, words=2)]
    if chains:
        head = ("in a row", "policy", *map(str, range(1, len(chains[0]) - 2)), "mean length")
        tables.append(ruled([head, *chains], words=2))
    return "\n\n".join(tables)
