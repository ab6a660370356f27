"""Closed-loop evaluation: policies act in a simulator, on seeds that no demonstration has; successes are counted.

The environment's expert and its random actions are the baselines, on the same seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from agent_jax.actions.codec import BoundSpec
from agent_jax.config import ClosedLoopConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.envs import EnvironmentModule, load
from agent_jax.envs.workers.simulator_pool import EXPERT
from agent_jax.envs.workers.simulators import Simulators
from agent_jax.evaluate.rollouts import (
    CONCURRENT,
    ActingPolicy,
    RolloutRecording,
    Sees,
    TaskResult,
    run_baseline,
    run_policy,
)
from agent_jax.evaluate.statistics import chain_summary, success_summary
from agent_jax.text_table import ruled

# Task -> policy -> success, episodes, ci95, mean_steps, lost; where episodes are chains, also chain; where it was asked
# for, per_episode.
Report = dict[str, dict[str, dict[str, Any]]]

# Of how many episodes of a task and policy each step is reported, failures first: some MB of JSON at most.
TRACED = 100


def closed_loop(config: ClosedLoopConfig, policies: Mapping[str, ActingPolicy], *, domain: Domain | None = None,
                image_size: int = 0, record: int = 1, watch: Callable[[RolloutRecording], None] | None = None,
                baselines: bool = True, per_episode: bool = False, traced: int = 0, concurrent: int = CONCURRENT,
                say: Callable[[str], None] = print) -> Report:
    """Evaluate policies, the environment's random baselines and its expert ("bot") on every task of the config.

    Args:
        config: environment, episodes by task, first seed, processes.
        policies: by their name in the report, e.g. "greedy" and "sampled".
        domain: in which the policies act; None: they see the image "rgb" alone.
        image_size: pixels of the observations; 0: the environment's default.
        record: how many episodes of each task and each of `policies` to record for `watch`, failures first.
        watch: is given these recordings when the policy has done the task, and they are not kept; None: there are none.
        baselines: whether to run them.
        per_episode: whether the report has seed, success, steps and instruction of each episode.
        traced: of how many of these, failures first, it has the actions and their probabilities as well.
        concurrent: episodes at a time; where a process can have one environment only, as many as there are processes.
        say: is given a line after each policy, and the table at the end.

    Returns:
        The figures.

    Raises:
        ValueError: an unknown environment or task, one without episodes, none at a time, a policy named like a
            baseline, a domain that does not fit the environment.
        RuntimeError: the simulators cannot be started, or every episode of a task was lost.
    """
    module = load(config.environment)
    names = baseline_names(module)
    if taken := sorted(set(policies) & set(names)):
        raise ValueError(f"policies: the names {', '.join(taken)} are those of baselines, expected others")
    for task, episodes in config.episodes.items():
        if episodes < 1:
            raise ValueError(f"task {task!r}: found {episodes} episodes to evaluate, expected at least 1")
    concurrent = at_a_time(module, concurrent, config.processes)
    sees = Sees()
    if domain is not None:
        check_domain(domain, module)
        sees = Sees.of(domain)
    report: Report = {}
    with Simulators(config.environment, image_size, processes=config.processes, keys=sees.keys) as simulators:
        for task, episodes in config.episodes.items():
            report[task] = {}
            seeds = range(config.seed, config.seed + episodes)
            for name in (*policies, *(names if baselines else ())):
                if name in policies:
                    result = run_policy(policies[name], simulators, task, seeds, sees=sees, name=name,
                                        record=record if watch else 0, trace=per_episode and traced > 0,
                                        action_name=module.action_name,
                                        concurrent=concurrent)
                else:
                    result = run_baseline(simulators, task, seeds, name, config.seed)
                report[task][name] = _figures(result, name)
                if per_episode:
                    report[task][name]["per_episode"] = _per_episode(result, traced)
                if watch is not None:
                    for recording in result.recordings:
                        watch(recording)
                say(_line(result, name, report[task][name]))
    say(format_table(report))
    return report


def at_a_time(module: EnvironmentModule, concurrent: int, processes: int) -> int:
    """How many episodes run at a time where `concurrent` are wanted; 0 processes: this one.

    Raises:
        ValueError: none are wanted.
    """
    if concurrent < 1:
        raise ValueError(f"concurrent={concurrent}: expected at least 1 episode at a time")
    return min(concurrent, max(1, processes)) if module.ONE_A_PROCESS else concurrent


def baseline_names(module: EnvironmentModule) -> tuple[str, ...]:
    """What `closed_loop` calls the baselines of an environment."""
    return (*module.RANDOM, *((EXPERT,) if module.HAS_EXPERT else ()))


def check_domain(domain: Domain, module: EnvironmentModule) -> None:
    """Refuse a domain that would misread the environment, or whose actions would be misread by it.

    Raises:
        ValueError: says how ActionSpec, StateSpec or cameras differ.
    """
    wrong = []
    if domain.spec is None:
        wrong.append("the domain has no ActionSpec")
    elif difference := domain.spec.spec.difference(module.ACTION_SPEC):
        wrong.append(f"ActionSpec, the domain's (there the environment's): {difference}")
    # A policy may do without what there is to know.
    if domain.state is not None and (difference := _state_difference(domain.state, module)):
        wrong.append(difference)
    if missing := [camera for camera in domain.camera_names if camera not in module.CAMERAS]:
        wrong.append(f"cameras: the domain sees through {', '.join(missing)}; the environment has "
                     f"{', '.join(module.CAMERAS)}")
    if wrong:
        raise ValueError(f"domain {domain.name!r} cannot act in the environment {module.NAME!r}: {'; '.join(wrong)}. "
                         "Name the environment whose data it was trained on, or another domain")


def _state_difference(state: BoundSpec, module: EnvironmentModule) -> str:
    """In words, how a domain's state differs from the environment's; empty if it does not."""
    if module.STATE_SPEC is not None:
        difference = state.spec.difference(module.STATE_SPEC)
        return f"StateSpec, the domain's (there the environment's): {difference}" if difference else ""
    if not module.STATE_SHAPES:
        return "the environment has no StateSpec"
    shapes = {key: shape for key, (shape, _) in state.spec.fields.items()}
    if shapes.items() <= module.STATE_SHAPES.items():
        return ""
    return f"shapes of the state, the domain's (there the environment's): {shapes} ({dict(module.STATE_SHAPES)})"


def _figures(result: TaskResult, name: str) -> dict[str, Any]:
    if not result.seeds:
        raise RuntimeError(f"task {result.task!r}, {name}: all {len(result.lost)} episodes were lost, since their "
                           f"processes died ({result.lost[0].reason}); their messages are above")
    chain = {} if result.completed is None else {"chain": chain_summary(result.completed, result.instructions)}
    return {**success_summary(result.success), "mean_steps": float(result.steps.mean()), **chain,
            "lost": [dataclasses.asdict(lost) for lost in result.lost]}


def without_episodes(report: Report) -> Report:
    """The report without its list of episodes, which is too long for a line of a log."""
    return {task: {name: {key: value for key, value in figures.items() if key != "per_episode"}
                   for name, figures in policies.items()} for task, policies in report.items()}


def _per_episode(result: TaskResult, traced: int) -> list[dict[str, Any]]:
    """Outcomes as JSON, in the order of their seeds."""
    order = sorted(range(len(result.outcomes)), key=lambda i: (result.outcomes[i].success, i))
    told = set(order[:traced])
    return [outcome.to_json(steps=i in told) for i, outcome in enumerate(result.outcomes)]


def _line(result: TaskResult, name: str, figures: Mapping[str, Any]) -> str:
    policy = f" ({result.policy_seconds:.1f} s of them in the policy)" if result.policy_seconds else ""
    line = (f"closed loop: {result.task}, {name}: {figures['success']:.1%} of {figures['episodes']} episodes, "
            f"{result.seconds:.1f} s{policy}")
    lost = [f"\n  lost: seed {lost.seed}, its process died ({lost.reason})" for lost in result.lost]
    return line + "".join(lost)


def format_table(report: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The report as aligned text, a line a task and policy; chains of instructions have a table of their own below."""
    rows = [("task", "policy", "success", "95% interval", "episodes", "steps")]
    chains: list[tuple[str, ...]] = []
    for task, policies in report.items():
        for name, figures in policies.items():
            low, high = figures["ci95"]
            first = next(iter(policies)) == name
            rows.append((task if first else "", name, f"{figures['success']:.1%}", f"{low:.1%} to {high:.1%}",
                         str(figures["episodes"]), f"{figures['mean_steps']:.1f}"))
            if "chain" in figures:
                shares = [f"{share['success']:.1%}" for share in figures["chain"]["in_a_row"]]
                chains.append((task if first else "", name, *shares, f"{figures['chain']['mean_length']:.2f}"))
    tables = [ruled(rows, words=2)]
    if chains:
        head = ("in a row", "policy", *map(str, range(1, len(chains[0]) - 2)), "mean length")
        tables.append(ruled([head, *chains], words=2))
    return "\n\n".join(tables)
