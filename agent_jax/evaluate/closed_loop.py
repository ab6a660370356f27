"""Closed-loop evaluation: policies act in a simulator, on seeds that no demonstration has; successes are counted.

All episodes of a level are stepped together, so that the policy sees batches; an episode that is over leaves the batch.
The trained agent, the environment's expert and random actions go through the same loop.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agent_jax.config import ClosedLoopConfig
from agent_jax.envs import Action, Environment, EnvironmentModule, Expert, load
from agent_jax.evaluate.statistics import success_summary


class Policy(Protocol):
    """What chooses actions, for many episodes at a time. `env_ids` name the episodes, from `reset` to their end."""

    def reset(self, env_ids: Sequence[int]) -> None:
        """Begin these episodes: forget what was seen under their ids."""
        ...

    def act(self, images: np.ndarray, instructions: Sequence[str], env_ids: Sequence[int]) -> Sequence[Action]:
        """The next action of each episode.

        Args:
            images: uint8 (n, size, size, 3), what the agent sees now.
            instructions: n of them, the same text throughout an episode.
            env_ids: n of them, in any order.
        """
        ...


@runtime_checkable
class Insider(Protocol):
    """A policy that reads the simulator's state, as an expert does."""

    def enter(self, environments: Sequence[Environment]) -> None:
        """Be given the environments, by id; they are reset already."""
        ...


class ExpertPolicy:
    """The environment's own expert."""

    def __init__(self, module: EnvironmentModule) -> None:
        self._make = module.Expert
        self._environments: Sequence[Environment] = ()
        self._experts: dict[int, Expert] = {}

    def enter(self, environments: Sequence[Environment]) -> None:
        """Take the environments that the experts look into."""
        self._environments = environments

    def reset(self, env_ids: Sequence[int]) -> None:
        """One new expert an episode."""
        self._experts |= {env_id: self._make(self._environments[env_id]) for env_id in env_ids}

    def act(self, images: np.ndarray, instructions: Sequence[str], env_ids: Sequence[int]) -> list[Action]:
        """What the experts say; the images are not looked at."""
        del images, instructions
        return [self._experts[env_id].act() for env_id in env_ids]


class RandomPolicy:
    """Draws uniformly from some actions; each episode has its own stream, so other episodes do not change it."""

    def __init__(self, actions: Sequence[Action], seed: int) -> None:
        self._actions, self._seed = actions, seed
        self._streams: dict[int, np.random.Generator] = {}

    def reset(self, env_ids: Sequence[int]) -> None:
        """Begin the episodes' streams."""
        self._streams |= {env_id: np.random.default_rng([self._seed, env_id]) for env_id in env_ids}

    def act(self, images: np.ndarray, instructions: Sequence[str], env_ids: Sequence[int]) -> list[Action]:
        """One draw an episode."""
        del images, instructions
        return [self._actions[int(self._streams[env_id].integers(len(self._actions)))] for env_id in env_ids]


@dataclasses.dataclass(frozen=True)
class Recording:
    """One episode to look at: `view.rollout.write_gif` draws it."""

    level: str
    policy: str
    seed: int
    instruction: str
    frames: np.ndarray  # uint8 (steps + 1, size, size, 3): before each action, and after the last
    actions: tuple[str, ...]
    success: bool


@dataclasses.dataclass(frozen=True)
class LevelResult:
    """Episodes of one policy on one level, in the order of their seeds."""

    level: str
    success: np.ndarray  # bool, one an episode
    steps: np.ndarray  # int64, one an episode
    recordings: tuple[Recording, ...]
    seconds: float  # of the whole level
    policy_seconds: float  # of which in the policy


def evaluate_level(
    policy: Policy,
    module: EnvironmentModule,
    level: str,
    episodes: int,
    seed: int,
    image_size: int,
    *,
    name: str = "",
    record: int = 0,
) -> LevelResult:
    """Run a policy through `episodes` episodes of a level, with seeds from `seed` on, until each has ended.

    Args:
        policy: what acts.
        module: the environment, of `agent_jax.envs.load`.
        level: of the environment.
        episodes: how many.
        seed: of the first episode.
        image_size: pixels of the observations.
        name: of the policy, for the recordings.
        record: how many episodes to record, from the first.

    Raises:
        ValueError: no episodes; or the policy answers with another number of actions than it was asked for.
    """
    if episodes < 1:
        raise ValueError(f"level {level!r}: found {episodes} episodes to evaluate, expected at least 1")
    begun, policy_seconds = time.perf_counter(), 0.0
    environments = [module.make(level, image_size) for _ in range(episodes)]
    images = [environment.reset(seed=seed + i)[0]["rgb"] for i, environment in enumerate(environments)]
    instructions = [environment.instruction for environment in environments]
    success, steps = np.zeros(episodes, bool), np.zeros(episodes, np.int64)
    frames, names = [[image] for image in images[:record]], [[] for _ in images[:record]]
    if isinstance(policy, Insider):
        policy.enter(environments)
    running = list(range(episodes))
    policy.reset(running)
    while running:
        asked = time.perf_counter()
        actions = policy.act(np.stack([images[i] for i in running]), [instructions[i] for i in running], running)
        policy_seconds += time.perf_counter() - asked
        if len(actions) != len(running):
            raise ValueError(
                f"policy {name!r}: found {len(actions)} actions for {len(running)} episodes, expected one each"
            )
        ended = set()
        for i, action in zip(running, actions, strict=True):
            observation, _, terminated, truncated, info = environments[i].step(action)
            images[i] = observation["rgb"]
            steps[i] += 1
            if i < record:
                frames[i].append(images[i])
                names[i].append(module.action_name(action))
            if terminated or truncated:
                success[i] = info["success"]
                ended.add(i)
        running = [i for i in running if i not in ended]
    recordings = tuple(
        Recording(level, name, seed + i, instructions[i], np.stack(frames[i]), tuple(names[i]), bool(success[i]))
        for i in range(len(frames))
    )
    return LevelResult(level, success, steps, recordings, time.perf_counter() - begun, policy_seconds)


@dataclasses.dataclass(frozen=True)
class ClosedLoopResult:
    """The figures, and some episodes to look at."""

    report: dict[str, dict[str, dict[str, Any]]]  # level -> policy -> success, episodes, ci95, mean_steps
    recordings: tuple[Recording, ...]


def closed_loop(
    config: ClosedLoopConfig,
    policies: Mapping[str, Policy],
    *,
    image_size: int = 56,
    record: int = 1,
    say: Callable[[str], None] = print,
) -> ClosedLoopResult:
    """Evaluate policies, the environment's random baselines and its expert ("bot") on every level of the config.

    Args:
        config: environment, episodes by level, first seed.
        policies: by their name in the report, e.g. "greedy" and "sampled".
        image_size: pixels of the observations.
        record: how many episodes of each level and each of `policies` to record, if `config.video`.
        say: is given a line after each policy, and the table at the end.

    Raises:
        ValueError: an unknown environment or level, a level without episodes, or a policy named like a baseline.
    """
    module = load(config.environment)
    baselines: dict[str, Policy] = {name: RandomPolicy(actions, config.seed) for name, actions in module.RANDOM.items()}
    baselines["bot"] = ExpertPolicy(module)
    if taken := sorted(set(policies) & set(baselines)):
        raise ValueError(f"policies: the names {', '.join(taken)} are those of baselines, expected others")
    report: dict[str, dict[str, dict[str, Any]]] = {}
    recordings: list[Recording] = []
    for level, episodes in config.episodes.items():
        report[level] = {}
        for name, policy in {**policies, **baselines}.items():
            result = evaluate_level(policy, module, level, episodes, config.seed, image_size, name=name,
                                    record=record if config.video and name in policies else 0)  # fmt: skip
            summary = success_summary(result.success)
            report[level][name] = {**summary, "mean_steps": float(result.steps.mean())}
            recordings += result.recordings
            say(f"closed loop: {level}, {name}: {summary['success']:.1%} of {episodes} episodes, "
                f"{result.seconds:.1f} s ({result.policy_seconds:.1f} s of them in the policy)")
    say(format_table(report))
    return ClosedLoopResult(report, tuple(recordings))


def format_table(report: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The report as aligned text, a line a level and policy."""
    rows = [("level", "policy", "success", "95% interval", "episodes", "steps")]
    for level, policies in report.items():
        for name, figures in policies.items():
            low, high = figures["ci95"]
            rows.append((level, name, f"{figures['success']:.1%}", f"{low:.1%} to {high:.1%}", str(figures["episodes"]),
                         f"{figures['mean_steps']:.1f}"))  # fmt: skip
            level = ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join([*texts, *numbers]).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
