"""Episodes of one task, run until each has ended: of a policy, of a baseline, or of recorded actions.

    step of all running episodes:  simulators --what is seen--> policy, one batch --actions--> simulators

Episodes advance together, at most `CONCURRENT` at a time; where one ends, the next begins. So the batches the policy
sees, and with them the results, do not depend on the number of processes. An episode is known to the policy by its
number.
"""

from __future__ import annotations

import collections
import dataclasses
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agent_jax.actions.specs import TERMINAL_KEY
from agent_jax.data.pipeline.domains import Domain
from agent_jax.envs import Action
from agent_jax.envs.workers.simulator_pool import EpisodeStatus
from agent_jax.envs.workers.simulators import Command, Died, Interrupted, Simulators

CONCURRENT = 32  # the largest batch that a policy is compiled for


class ActingPolicy(Protocol):
    """What chooses actions, for many episodes at a time. `env_ids` name the episodes, from `reset` to their end."""

    def reset(self, env_ids: Sequence[Any]) -> None:
        """Begin these episodes, or go on with a new instruction: forget what was seen under their ids."""
        ...

    def act(self, images: Any, instructions: Sequence[str], env_ids: Sequence[Any],
            states: Any = None) -> Sequence[Action]:
        """The next action of each episode.

        Args:
            images: n mappings from a camera to what it sees, uint8 (height, width, 3).
            instructions: n of them.
            env_ids: n of them, in any order.
            states: n mappings of the state's values, where the policy reads a state.
        """
        ...


@runtime_checkable
class Forgetful(Protocol):
    """A policy that can be told that an episode will not go on."""

    def forget(self, env_ids: Sequence[Any]) -> None:
        """Drop all memory of these episodes."""
        ...


@runtime_checkable
class Weighing(Protocol):
    """A policy that knows how probable its actions were."""

    def probability(self, env_id: Any) -> float:
        """Of the last action of an episode."""
        ...


@dataclasses.dataclass(frozen=True)
class RolloutRecording:
    """One episode to look at: `view.rollout` draws it."""

    task: str
    policy: str
    seed: int
    instructions: tuple[str, ...]  # one a frame
    frames: np.ndarray  # uint8 (steps + 1, height, width, 3): before each action, and after the last
    actions: tuple[str, ...]
    success: bool


@dataclasses.dataclass(frozen=True)
class EpisodeOutcome:
    """What came of one episode, by which it can be found and begun again."""

    seed: int
    success: bool
    steps: int
    instruction: str  # of a chain, all that were begun, joined by "; "
    actions: tuple[dict[str, Any], ...] = ()  # one a step, as JSON; () where they were not asked for
    probabilities: tuple[float, ...] = ()  # of each action; () where the policy knows of none

    def to_json(self, *, steps: bool) -> dict[str, Any]:
        """JSON, with or without what was done at each step."""
        content: dict[str, Any] = {"seed": self.seed, "success": self.success, "steps": self.steps,
                                   "instruction": self.instruction}
        if steps and self.actions:
            content["actions"] = list(self.actions)
        if steps and self.probabilities:
            content["probabilities"] = list(self.probabilities)
        return content


@dataclasses.dataclass(frozen=True)
class Lost:
    """An episode that has no outcome, since its process died."""

    seed: int
    reason: str


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Episodes of one policy on one task, in the order of their seeds, less the lost ones."""

    task: str
    seeds: tuple[int, ...]
    success: np.ndarray  # bool, one an episode
    steps: np.ndarray  # int64, one an episode
    lost: tuple[Lost, ...] = ()
    outcomes: tuple[EpisodeOutcome, ...] = ()  # one an episode
    recordings: tuple[RolloutRecording, ...] = ()  # failures first
    seconds: float = 0.0  # of all episodes
    policy_seconds: float = 0.0  # of which in the policy
    completed: np.ndarray | None = None  # int64, one an episode: instructions of its chain that were carried out
    instructions: int = 1  # of an episode; several where `completed` counts them


@dataclasses.dataclass(frozen=True)
class Sees:
    """What of an observation a policy is given."""

    cameras: tuple[str, ...] = ("rgb",)
    state: tuple[str, ...] = ()  # keys of the state

    @classmethod
    def of(cls, domain: Domain) -> Sees:
        """What a policy of the domain is given: the images of its cameras and the keys of its StateSpec."""
        return cls(domain.camera_names, tuple(domain.state.spec.fields) if domain.state else ())

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the observation."""
        return (*self.cameras, *self.state)


def run_policy(policy: ActingPolicy, simulators: Simulators, task: str, seeds: Sequence[int], *,
               sees: Sees | None = None, name: str = "", record: int = 0, trace: bool = False,
               action_name: Callable[[Action], str] = str, concurrent: int = CONCURRENT) -> TaskResult:
    """Run a policy through the episodes of `seeds`.

    Args:
        policy: what acts.
        simulators: of the environment.
        task: of the environment.
        seeds: of the episodes.
        sees: what the policy is shown; by default the image "rgb".
        name: of the policy, for the recordings.
        record: how many episodes to record: the first that failed, then the first of the others.
        trace: whether outcomes have the actions and their probabilities.
        action_name: an action in a word, for the recordings.
        concurrent: episodes at a time.

    Raises:
        ValueError: no episodes, or none at a time; or the policy answers with another number of actions than it was
            asked for.
    """
    if not seeds:
        raise ValueError(f"task {task!r}: found 0 episodes to evaluate, expected at least 1")
    if concurrent < 1:
        raise ValueError(f"concurrent={concurrent}: expected at least 1 episode at a time")
    begun = time.perf_counter()
    rollouts = _Rollouts(policy, task, seeds, sees or Sees(), name, record, action_name, trace=trace)
    while rollouts.unfinished:
        commands = rollouts.commands(concurrent)
        rollouts.take(simulators.exchange(commands))
    return rollouts.result(time.perf_counter() - begun)


class _Rollouts:
    """The state of `run_policy`: which episode is in which place, and what it shows."""

    def __init__(self, policy: ActingPolicy, task: str, seeds: Sequence[int], sees: Sees, name: str, record: int,
                 action_name: Callable[[Action], str], *, trace: bool) -> None:
        self._policy, self._task, self._seeds, self._sees = policy, task, seeds, sees
        self._name, self._record, self._action_name, self._trace = name, record, action_name, trace
        self._waiting = collections.deque(range(len(seeds)))
        self._episode: dict[int, int] = {}  # by place
        self._seen: dict[int, EpisodeStatus] = {}  # by place
        self._ended: dict[int, EpisodeStatus] = {}  # by episode
        self._lost: dict[int, str] = {}  # by episode
        # By episode. Which of them fail is known at their ends, so frames of all that run are kept, compressed.
        self._frames: dict[int, list[bytes]] = {}
        self._shape: tuple[int, ...] = ()  # of a frame
        self._instructions: dict[int, list[str]] = {}
        self._actions: dict[int, list[str]] = {}
        self._told: dict[int, list[str]] = {}  # each instruction once
        self._steps: dict[int, list[tuple[dict[str, Any], float | None]]] = {}
        self._policy_seconds = 0.0

    @property
    def unfinished(self) -> bool:
        """Whether an episode is running or waiting."""
        return bool(self._waiting or self._episode)

    def commands(self, concurrent: int) -> dict[int, Command]:
        """By place: the next action of each running episode, and the beginning of others in the free places."""
        running = sorted(self._episode)
        commands = {}
        for place, action in zip(running, self._ask(running) if running else (), strict=True):
            commands[place] = Command("step", {"place": place}, action)
            episode = self._episode[place]
            if self._trace:
                odds = self._policy.probability(episode) if isinstance(self._policy, Weighing) else None
                self._steps[episode].append((_as_json(action), odds))
            if episode in self._actions:
                over = action.get(TERMINAL_KEY, False)
                self._actions[episode].append(TERMINAL_KEY if over else self._action_name(action))
        for place in range(min(concurrent, len(self._seeds))):
            if place not in self._episode and self._waiting:
                episode = self._episode[place] = self._waiting.popleft()
                self._policy.reset([episode])
                self._told[episode], self._steps[episode] = [], []
                if self._record:
                    self._frames[episode], self._instructions[episode], self._actions[episode] = [], [], []
                arguments = {"place": place, "task": self._task, "seed": self._seeds[episode]}
                commands[place] = Command("begin", arguments)
        return commands

    def take(self, answers: Mapping[int, Any]) -> None:
        """What the simulators answered, by place."""
        interrupted = []
        for place, answer in answers.items():
            episode = self._episode[place]
            if isinstance(answer, EpisodeStatus):
                if answer.steps and answer.instruction != self._seen[place].instruction:
                    self._policy.reset([episode])  # what was done for another instruction is no part of this one
                self._seen[place] = answer
                if [answer.instruction] != self._told[episode][-1:]:
                    self._told[episode].append(answer.instruction)
                if episode in self._frames:
                    frame = answer.observation[self._sees.cameras[0]]
                    self._shape = frame.shape
                    self._frames[episode].append(zlib.compress(frame.tobytes(), 1))
                    self._instructions[episode].append(answer.instruction)
                if not answer.over:
                    continue
                self._ended[episode] = answer
                self._drop_frames()
            elif isinstance(answer, Died):
                self._lost[episode] = answer.reason
                self._frames.pop(episode, None)
            elif isinstance(answer, Interrupted):
                interrupted.append(episode)
            del self._episode[place]
            if isinstance(self._policy, Forgetful):
                self._policy.forget([episode])
        self._waiting.extendleft(sorted(interrupted, reverse=True))

    def _recorded(self) -> list[int]:
        """The episodes to look at that have ended: failures first."""
        return sorted(self._frames.keys() & self._ended.keys(), key=lambda i: (self._ended[i].success, i))

    def _drop_frames(self) -> None:
        for episode in self._recorded()[self._record :]:
            del self._frames[episode], self._instructions[episode], self._actions[episode]

    def _ask(self, places: Sequence[int]) -> Sequence[Action]:
        seen, episodes = [self._seen[place] for place in places], [self._episode[place] for place in places]
        images = [{camera: one.observation[camera] for camera in self._sees.cameras} for one in seen]
        states = [{key: one.observation[key] for key in self._sees.state} for one in seen] if self._sees.state else None
        asked = time.perf_counter()
        actions = self._policy.act(images, [one.instruction for one in seen], episodes, states)
        self._policy_seconds += time.perf_counter() - asked
        if len(actions) != len(places):
            raise ValueError(f"policy {self._name!r}: found {len(actions)} actions for {len(places)} episodes, "
                             "expected one each")
        return actions

    def result(self, seconds: float) -> TaskResult:
        """What came of all episodes."""
        recordings = tuple(
            RolloutRecording(self._task, self._name, self._seeds[i], tuple(self._instructions[i]),
                      np.stack([np.frombuffer(zlib.decompress(frame), np.uint8).reshape(self._shape)
                                for frame in self._frames[i]]),
                      tuple(self._actions[i]), self._ended[i].success)
            for i in self._recorded())
        found = _result(self._task, self._seeds, self._ended, self._lost)
        outcomes = tuple(
            dataclasses.replace(outcome, instruction="; ".join(self._told[i]),
                                actions=tuple(action for action, _ in self._steps[i]),
                                probabilities=tuple(odds for _, odds in self._steps[i] if odds is not None))
            for i, outcome in zip(sorted(self._ended), found.outcomes, strict=True))
        return dataclasses.replace(found, outcomes=outcomes, recordings=recordings, seconds=seconds,
                                   policy_seconds=self._policy_seconds)


def _as_json(action: Action) -> dict[str, Any]:
    """An action as JSON; numbers to 6 digits, which is more than bins have."""

    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return {key: rounded(np.asarray(value).tolist()) for key, value in action.items()}


def run_whole(simulators: Simulators, task: str, seeds: Sequence[int], commands: Sequence[Command]) -> TaskResult:
    """Run episodes that need no policy here: one command ("play" or "replay") of each seed."""
    begun = time.perf_counter()
    ended: dict[int, EpisodeStatus] = {}
    lost: dict[int, str] = {}
    while missing := [i for i in range(len(commands)) if i not in ended and i not in lost]:
        for number, answer in simulators.exchange({i: commands[i] for i in missing}).items():
            if isinstance(answer, EpisodeStatus):
                ended[number] = answer
            elif isinstance(answer, Died):
                lost[number] = answer.reason
    return dataclasses.replace(_result(task, seeds, ended, lost), seconds=time.perf_counter() - begun)


def run_baseline(simulators: Simulators, task: str, seeds: Sequence[int], who: str, seed: int) -> TaskResult:
    """Run the environment's expert ("bot") or random actions through the episodes of `seeds`.

    Args:
        simulators: of the environment.
        task: of the environment.
        seeds: of the episodes.
        who: "bot", or a name of the module's RANDOM.
        seed: of the random actions; each episode has its own stream, so other episodes do not change it.
    """
    return run_whole(simulators, task, seeds, [
        Command("play", {"task": task, "seed": episode_seed, "who": who, "stream": [seed, i]})
        for i, episode_seed in enumerate(seeds)])


def _result(task: str, seeds: Sequence[int], ended: Mapping[int, EpisodeStatus], lost: Mapping[int, str]) -> TaskResult:
    order = sorted(ended)
    result = TaskResult(task, tuple(seeds[i] for i in order), np.array([ended[i].success for i in order], bool),
                        np.array([ended[i].steps for i in order], np.int64),
                        tuple(Lost(seeds[i], lost[i]) for i in sorted(lost)),
                        tuple(EpisodeOutcome(seeds[i], ended[i].success, ended[i].steps, ended[i].instruction)
                              for i in order))
    chains = [chain for i in order if (chain := ended[i].chain)]
    if not chains:
        return result
    return dataclasses.replace(result, completed=np.array([done for done, _ in chains], np.int64),
                               instructions=chains[0][1])
