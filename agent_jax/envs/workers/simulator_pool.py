"""The simulators of one process: episodes step by step, or whole.

    begin(slot, task, seed), step(slot, action)       one step of an episode whose actions a policy chooses
    steps(slot, actions)                              several of its steps, without the policy
    play(task, seed, ...), replay(task, seed, ...)    a whole episode
    reword(task, seed, kind, tasks)                   another instruction for an episode

All return an `EpisodeStatus`. Arguments and results are numbers, texts and arrays, so they can be sent to a process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.actions.specs import TERMINAL_KEY
from agent_jax.envs import Action, Environment, load
from agent_jax.envs.instructions import CONTRADICT, PARAPHRASE, SWAP, Goal, content, episode_random, hook

EXPERT = "bot"  # the expert's name among the baselines


@dataclasses.dataclass(frozen=True)
class EpisodeStatus:
    """The state of an episode after its reset or a step."""

    observation: Mapping[str, np.ndarray]  # images and state by key; {} after a whole episode
    instruction: str
    steps: int  # taken so far
    over: bool
    success: bool
    chain: tuple[int, int] | None = None  # instructions completed and their number; None: the episode has one
    between: tuple[np.ndarray, ...] = ()  # images after the earlier steps of `steps`, if they were asked for
    done: tuple[bool | None, ...] = ()  # whether each of `begin`'s goals was fulfilled so far; None: cannot be told


class SimulatorPool:
    """Environments of one module, one a slot; a slot keeps its environment until another task begins there."""

    def __init__(self, environment: str, image_size: int = 0, keys: Sequence[str] = ()) -> None:
        """Load the environment module.

        Args:
            environment: a name, as for `envs.load`.
            image_size: pixels of the images; 0: the module's default.
            keys: keys of the observation to return; empty: all.

        Raises:
            ValueError, ModuleNotFoundError: as `envs.load`.
        """
        self.module = load(environment)
        self._image_size, self._keys = image_size or self.module.IMAGE_SIZE, tuple(keys)
        self._environments: dict[int, tuple[str, Environment]] = {}
        self._last: dict[int, EpisodeStatus] = {}
        self._goals: dict[int, list[Goal | None]] = {}
        self._only: dict[str, str] = {}  # the instruction of each task examined; "": it has several

    def begin(self, slot: int, task: str, seed: int, goals: Sequence[str] = ()) -> EpisodeStatus:
        """Begin the episode of a seed, in place of the slot's last one.

        Args:
            slot: of the episode.
            task: of the environment.
            seed: of the episode.
            goals: other instructions; the statuses of the episode have whether each was fulfilled.
        """
        found = self._environments.get(slot)
        if found is None or found[0] != task:
            ended = self._environments.keys() if self.module.ONE_A_PROCESS else self._environments.keys() & {slot}
            for other in list(ended):
                self._environments.pop(other)[1].close()
            found = self._environments[slot] = task, self.module.make(task, self._image_size)
        observation, info = found[1].reset(seed=seed)
        make_goal = hook(self.module, "goal_of")
        self._goals[slot] = [make_goal(found[1], text) if make_goal else None for text in goals]
        done = tuple(None if goal is None else False for goal in self._goals[slot])
        return self._status(slot, observation, info, steps=0, over=False, done=done)

    def step(self, slot: int, action: Action) -> EpisodeStatus:
        """Take one action in a slot; the terminal action ends the episode without a step of the simulator."""
        last = self._last[slot]
        if action.get(TERMINAL_KEY, False):
            return dataclasses.replace(last, steps=last.steps + 1, over=True)
        observation, _, terminated, truncated, info = self._environments[slot][1].step(action)
        done = tuple(None if goal is None else goal(action) or before
                     for goal, before in zip(self._goals[slot], last.done, strict=True))
        return self._status(slot, observation, info, steps=last.steps + 1, over=terminated or truncated, done=done)

    def steps(self, slot: int, actions: Sequence[Action], camera: str = "") -> EpisodeStatus:
        """Take actions in a slot, one after another, until the episode is over or has another instruction.

        Args:
            slot: of the episode.
            actions: at least one.
            camera: the status has the images of this camera after every step but the last; "": it has none.
        """
        instruction, between = self._last[slot].instruction, []
        for number, action in enumerate(actions, 1):
            status = self.step(slot, action)
            if status.over or status.instruction != instruction or number == len(actions):
                return dataclasses.replace(status, between=tuple(between))
            if camera:
                between.append(np.array(status.observation[camera]))  # a copy: simulators draw into the same buffer
        raise ValueError("steps: found no actions, expected at least one")

    def play(self, task: str, seed: int, baseline: str, stream: Sequence[int]) -> EpisodeStatus:
        """A whole episode of a baseline.

        Args:
            task: of the environment.
            seed: of the episode.
            baseline: "bot" for the expert, or a key of the module's `RANDOM`.
            stream: seed of the random actions.
        """
        status = self.begin(_WHOLE, task, seed)
        environment = self._environments[_WHOLE][1]
        if baseline == EXPERT:
            act = self.module.Expert(environment).act
        else:
            actions, random = self.module.RANDOM[baseline], np.random.default_rng(stream)
            act = lambda: actions[int(random.integers(len(actions)))]  # noqa: E731
        while not status.over:
            status = self.step(_WHOLE, act())
        return dataclasses.replace(status, observation={})

    def replay(self, task: str, seed: int, actions: Mapping[str, np.ndarray]) -> EpisodeStatus:
        """An episode of given actions, one row a step by key; it ends with the last action or earlier."""
        status = self.begin(_WHOLE, task, seed)
        for row in range(len(next(iter(actions.values())))):
            status = self.step(_WHOLE, {key: values[row] for key, values in actions.items()})
            if status.over:
                break
        return dataclasses.replace(status, observation={}, over=True)

    def reword(self, task: str, seed: int, kind: str, tasks: Sequence[str]) -> EpisodeStatus:
        """The first status of an episode with another instruction in place of its own; "": there is none.

        Args:
            task: of the environment.
            seed: of the episode; it decides on the instruction.
            kind: "swap", "paraphrase" or "contradict" (`envs/instructions.py`).
            tasks: of which one may lend its instruction if all episodes of `task` have the same.
        """
        status, random = self.begin(_WHOLE, task, seed), episode_random(seed)
        environment = self._environments[_WHOLE][1]
        if kind == SWAP:
            text = self._swapped(task, status.instruction, tasks, random)
        else:
            arguments = {PARAPHRASE: (status.instruction, random), CONTRADICT: (environment, random)}[kind]
            make = hook(self.module, kind)
            text = make(*arguments) if make else ""
        return dataclasses.replace(status, observation={}, instruction=text, over=True)

    def _swapped(self, task: str, own: str, tasks: Sequence[str], random: np.random.Generator) -> str:
        """The instruction of another episode of the task, else of another task; "": there is no other one."""
        if not self._only_instruction(task):
            for seed in random.integers(_FIRST_OTHER, _FIRST_OTHER + 2**30, _MOST_DRAWS):
                text = self.begin(_WHOLE, task, int(seed)).instruction
                if content(text) != content(own):
                    return text
        for number in random.permutation(len(tasks)):
            other, seed = tasks[int(number)], int(random.integers(_FIRST_OTHER, _FIRST_OTHER + 2**30))
            text = self._only_instruction(other) or self.begin(_WHOLE, other, seed).instruction
            if content(text) != content(own):
                return text
        return ""

    def _only_instruction(self, task: str) -> str:
        """The instruction of a task that gives the same one in all of some episodes, else ""."""
        if task not in self._only:
            found = [self.begin(_WHOLE, task, _FIRST_OTHER + i).instruction for i in range(_EXAMINED)]
            self._only[task] = found[0] if len(set(map(content, found))) == 1 else ""
        return self._only[task]

    def close(self) -> None:
        """Close the simulators."""
        for _, environment in self._environments.values():
            environment.close()
        self._environments = {}

    def _status(self, slot: int, observation: Mapping[str, Any], info: Mapping[str, Any], *, steps: int, over: bool,
                done: tuple[bool | None, ...]) -> EpisodeStatus:
        arrays = {key: np.asarray(value) for key, value in observation.items() if not self._keys or key in self._keys}
        instruction = self._environments[slot][1].instruction
        several = info.get("instructions", 1) > 1
        chain = (int(info["completed"]), int(info["instructions"])) if several else None
        self._last[slot] = EpisodeStatus(arrays, instruction, steps, over=bool(over),
                                          success=bool(info["success"]), chain=chain, done=done)
        return self._last[slot]


_WHOLE = -1  # the slot of whole episodes
_FIRST_OTHER = 1_000_000  # seeds of episodes that lend their instruction begin here
_MOST_DRAWS = 32
_EXAMINED = 6  # episodes that show whether a task has several instructions
