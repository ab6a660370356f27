"""Run the episodes of one task: of a policy, of a baseline, or of recorded actions.

    one step of all running episodes:  simulators --observations--> policy, one batch --actions--> simulators

A policy may return several actions for an observation, which the simulators execute without asking it again.

At most `concurrent` episodes run at a time; when one ends, the next begins in its slot. So the policy's batches, and
with them the results, do not depend on the number of processes. The policy knows an episode by its number.
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
from agent_jax.envs.workers.simulators import Answer, Command, Simulators, WorkerDied
from agent_jax.evaluate.outcomes import RolloutRecording, TaskResult

CONCURRENT = 32  # the largest batch that a policy is compiled for


class ActingPolicy(Protocol):
    """Chooses actions for many episodes at a time. `env_ids` name the episodes, from `reset` to their end."""

    def reset(self, env_ids: Sequence[Any]) -> None:
        """Begin these episodes, or continue them with a new instruction: drop their history."""
        ...

    def act(self, images: Any, instructions: Sequence[str], env_ids: Sequence[Any],
            states: Any = None) -> Sequence[Action | Sequence[Action]]:
        """The next action of each episode, or a list of its next actions.

        Args:
            images: n mappings from a camera to its image, uint8 (height, width, 3).
            instructions: n texts.
            env_ids: n ids, in any order.
            states: n mappings of the state's values, if the policy reads a state.
        """
        ...


@runtime_checkable
class ForgettingPolicy(Protocol):
    """A policy that frees the memory of ended episodes."""

    def forget(self, env_ids: Sequence[Any]) -> None:
        """Drop the history of these episodes."""
        ...


@runtime_checkable
class ProbabilisticPolicy(Protocol):
    """A policy that knows the probability of its actions."""

    def probability(self, env_id: Any) -> float:
        """The probability of an episode's last action.

        A policy that returns lists of actions has a second argument, the number of the action in the list.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ObservationKeys:
    """The parts of an observation that a policy receives."""

    cameras: tuple[str, ...] = ("rgb",)
    state: tuple[str, ...] = ()

    @classmethod
    def of(cls, domain: Domain) -> ObservationKeys:
        """The cameras of the domain and the keys of its StateSpec."""
        return cls(domain.camera_names, tuple(domain.state.spec.fields) if domain.state else ())

    @property
    def all(self) -> tuple[str, ...]:
        """Cameras, then state."""
        return (*self.cameras, *self.state)


def run_policy(policy: ActingPolicy, simulators: Simulators, task: str, seeds: Sequence[int], *,
               keys: ObservationKeys | None = None, name: str = "", record: int = 0, trace: bool = False,
               action_name: Callable[[Action], str] = str, concurrent: int = CONCURRENT,
               read: Sequence[str] = (), goals: Sequence[Sequence[str]] = (),
               on_end: Callable[[int], None] | None = None) -> TaskResult:
    """Run a policy through the episodes of `seeds`.

    Args:
        policy: the policy.
        simulators: of the environment.
        task: of the environment.
        seeds: of the episodes.
        keys: the policy's inputs; None: the image "rgb".
        name: of the policy, for the recordings.
        record: number of episodes to record: the shortest that failed, then the shortest of the others.
        trace: whether outcomes have the actions and their probabilities.
        action_name: a short text for an action, for the recordings.
        concurrent: episodes at a time.
        read: what the policy reads in each episode in place of the environment's instruction; (): the instruction.
        goals: other instructions of each episode; its outcome has whether each was fulfilled. (): none.
        on_end: called with the number of episodes that have just ended.

    Raises:
        ValueError: no episodes, `concurrent` below 1, or the policy returns a wrong number of actions.
    """
    if not seeds:
        raise ValueError(f"task {task!r}: found 0 episodes to evaluate, expected at least 1")
    if concurrent < 1:
        raise ValueError(f"concurrent={concurrent}: expected at least 1 episode at a time")
    begun = time.perf_counter()
    rollouts = _Rollouts(policy, task, seeds, keys or ObservationKeys(), name, record, action_name, trace=trace,
                        read=read, goals=goals)
    while unfinished := rollouts.unfinished:
        rollouts.update(simulators.exchange(rollouts.commands(concurrent)))
        if on_end and unfinished > rollouts.unfinished:
            on_end(unfinished - rollouts.unfinished)
    return rollouts.result(time.perf_counter() - begun)


@dataclasses.dataclass
class _EpisodeLog:
    """The latest status of an episode, and what was recorded of it."""

    number: int
    status: EpisodeStatus | None = None
    chosen: Sequence[Action] = ()  # the actions of its current command, of which not all may be executed
    chosen_probabilities: Sequence[float] = ()  # of these, if they are traced
    instructions: list[str] = dataclasses.field(default_factory=list)  # each one once, in order
    actions: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # as JSON
    probabilities: list[float] = dataclasses.field(default_factory=list)
    frames: list[bytes] = dataclasses.field(default_factory=list)  # compressed
    frame_instructions: list[str] = dataclasses.field(default_factory=list)
    action_names: list[str] = dataclasses.field(default_factory=list)


class _Rollouts:
    """The state of `run_policy`."""

    def __init__(self, policy: ActingPolicy, task: str, seeds: Sequence[int], keys: ObservationKeys, name: str,
                 record: int, action_name: Callable[[Action], str], *, trace: bool, read: Sequence[str],
                 goals: Sequence[Sequence[str]]) -> None:
        self._read, self._goals = read, goals
        self._policy, self._task, self._seeds, self._keys = policy, task, seeds, keys
        self._name, self._record, self._action_name, self._trace = name, record, action_name, trace
        self._waiting = collections.deque(range(len(seeds)))
        self._running: dict[int, _EpisodeLog] = {}  # by slot
        self._ended: dict[int, _EpisodeLog] = {}  # by episode
        self._lost: dict[int, str] = {}  # by episode
        self._frame_shape: tuple[int, ...] = ()
        self._policy_seconds = 0.0

    @property
    def unfinished(self) -> int:
        """How many episodes are running or waiting."""
        return len(self._waiting) + len(self._running)

    def commands(self, concurrent: int) -> dict[int, Command]:
        """By slot: the next action of each running episode, and the start of waiting episodes in free slots."""
        commands, slots = {}, sorted(self._running)
        for slot, found in zip(slots, self._act([self._running[slot] for slot in slots]), strict=True):
            episode = self._running[slot]
            episode.chosen = [found] if isinstance(found, Mapping) else found
            if not episode.chosen:
                raise ValueError(f"policy {self._name!r}: found an empty list of actions, expected at least one")
            if self._trace and isinstance(self._policy, ProbabilisticPolicy):
                episode.chosen_probabilities = [  # a policy of single actions takes no number
                    self._policy.probability(episode.number, *([number] if number else []))
                    for number in range(len(episode.chosen))]
            # A worker may lack the library of the arrays.
            arrays = [{key: np.asarray(value) for key, value in action.items()} for action in episode.chosen]
            camera = self._keys.cameras[0] if self._record else ""
            commands[slot] = (Command("step", {"slot": slot, "action": arrays[0]}) if len(arrays) == 1 else
                              Command("steps", {"slot": slot, "actions": arrays, "camera": camera}))
        for slot in range(min(concurrent, len(self._seeds))):
            if slot not in self._running and self._waiting:
                episode = self._running[slot] = _EpisodeLog(self._waiting.popleft())
                self._policy.reset([episode.number])
                arguments: dict[str, Any] = {"slot": slot, "task": self._task, "seed": self._seeds[episode.number]}
                if self._goals:
                    arguments["goals"] = tuple(self._goals[episode.number])
                commands[slot] = Command("begin", arguments)
        return commands

    def _act(self, episodes: Sequence[_EpisodeLog]) -> Sequence[Action | Sequence[Action]]:
        if not episodes:
            return ()
        statuses = [episode.status for episode in episodes if episode.status]
        images, states = ([{key: status.observation[key] for key in keys} for status in statuses]
                          for keys in (self._keys.cameras, self._keys.state))
        begun = time.perf_counter()
        actions = self._policy.act(images, [self._reads(episode.number, status)
                                            for episode, status in zip(episodes, statuses, strict=True)],
                                   [episode.number for episode in episodes], states if self._keys.state else None)
        self._policy_seconds += time.perf_counter() - begun
        if len(actions) != len(episodes):
            raise ValueError(f"policy {self._name!r}: found {len(actions)} actions for {len(episodes)} episodes, "
                             "expected one each")
        return actions

    def _reads(self, number: int, status: EpisodeStatus) -> str:
        """The text that the policy reads in an episode."""
        return self._read[number] if self._read else status.instruction

    def update(self, answers: Mapping[int, Answer]) -> None:
        """Take the simulators' answers, by slot."""
        interrupted = []
        for slot, answer in answers.items():
            episode = self._running[slot]
            if isinstance(answer, EpisodeStatus):
                self._log(episode, answer)
                if not answer.over:
                    continue
                self._ended[episode.number] = episode
                for other in self._recorded()[self._record :]:
                    other.frames.clear()
            elif isinstance(answer, WorkerDied):
                self._lost[episode.number] = answer.reason
            else:
                interrupted.append(episode.number)
            del self._running[slot]
            if isinstance(self._policy, ForgettingPolicy):
                self._policy.forget([episode.number])
        self._waiting.extendleft(sorted(interrupted, reverse=True))

    def _log(self, episode: _EpisodeLog, status: EpisodeStatus) -> None:
        executed = status.steps - (episode.status.steps if episode.status else 0)
        if self._trace:
            episode.actions += map(_as_json, episode.chosen[:executed])
            episode.probabilities += episode.chosen_probabilities[:executed]
        if episode.status and status.instruction != episode.status.instruction:
            self._policy.reset([episode.number])  # the history of another instruction does not count
        episode.status = status
        if [status.instruction] != episode.instructions[-1:]:
            episode.instructions.append(status.instruction)
        if self._record:  # every running episode: only its end shows whether it fails
            episode.action_names += [TERMINAL_KEY if action.get(TERMINAL_KEY, False) else self._action_name(action)
                                     for action in episode.chosen[:executed]]
            last = status.observation[self._keys.cameras[0]]
            self._frame_shape = last.shape
            # The instruction of the images in between is the earlier one: another one ends the list of actions.
            episode.frame_instructions += [*episode.frame_instructions[-1:] * len(status.between),
                                           self._reads(episode.number, status)]
            episode.frames += [zlib.compress(frame.tobytes(), 1) for frame in (*status.between, last)]

    def _recorded(self) -> list[_EpisodeLog]:
        """The ended episodes with frames, failures first, and the shortest ones first."""
        return sorted((episode for episode in self._ended.values() if episode.frames),
                      key=lambda episode: (episode.status is not None and episode.status.success, len(episode.frames),
                                           episode.number))

    def result(self, seconds: float) -> TaskResult:
        """The result of all episodes."""
        recordings = tuple(
            RolloutRecording(
                self._task, self._name, self._seeds[one.number], tuple(one.frame_instructions),
                np.stack([np.frombuffer(zlib.decompress(frame), np.uint8).reshape(self._frame_shape)
                          for frame in one.frames]),
                tuple(one.action_names), success=one.status is not None and one.status.success,
                probabilities=tuple(one.probabilities))
            for one in self._recorded())
        ended = {number: episode.status for number, episode in self._ended.items() if episode.status}
        result = TaskResult.of(self._task, self._seeds, ended, self._lost)
        outcomes = tuple(
            dataclasses.replace(outcome, instruction="; ".join(episode.instructions), actions=tuple(episode.actions),
                                probabilities=tuple(episode.probabilities),
                                read=str(self._read[episode.number]) if self._read else None)
            for outcome, (_, episode) in zip(result.outcomes, sorted(self._ended.items()), strict=True))
        return dataclasses.replace(result, outcomes=outcomes, recordings=recordings, seconds=seconds,
                                   policy_seconds=self._policy_seconds)


def _as_json(action: Action) -> dict[str, Any]:
    """An action as JSON; numbers to 6 digits, which is more precise than bins."""

    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return {key: rounded(np.asarray(value).tolist()) for key, value in action.items()}


def run_whole(simulators: Simulators, task: str, seeds: Sequence[int], commands: Sequence[Command]) -> TaskResult:
    """Run whole episodes by one command ("play" or "replay") for each seed."""
    begun = time.perf_counter()
    ended: dict[int, EpisodeStatus] = {}
    lost: dict[int, str] = {}
    while missing := [i for i in range(len(commands)) if i not in ended and i not in lost]:
        for number, answer in simulators.exchange({i: commands[i] for i in missing}).items():
            if isinstance(answer, EpisodeStatus):
                ended[number] = answer
            elif isinstance(answer, WorkerDied):
                lost[number] = answer.reason
    return dataclasses.replace(TaskResult.of(task, seeds, ended, lost), seconds=time.perf_counter() - begun)


def run_baseline(simulators: Simulators, task: str, seeds: Sequence[int], baseline: str, seed: int) -> TaskResult:
    """Run the environment's expert ("bot") or random actions through the episodes of `seeds`.

    Args:
        simulators: of the environment.
        task: of the environment.
        seeds: of the episodes.
        baseline: "bot", or a key of the module's RANDOM.
        seed: of the random actions; each episode has its own stream, so other episodes do not change it.
    """
    return run_whole(simulators, task, seeds, [
        Command("play", {"task": task, "seed": episode_seed, "baseline": baseline, "stream": [seed, i]})
        for i, episode_seed in enumerate(seeds)])
