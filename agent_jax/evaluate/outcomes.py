"""Records of finished episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.envs.workers.simulator_pool import EpisodeStatus

_STEP_MS = 500
_LONG = 60  # steps from which a video is faster, so that the whole episode takes about 30 s


@dataclasses.dataclass(frozen=True)
class RolloutRecording:
    """One episode to draw (`rollout_video`)."""

    task: str
    policy: str
    seed: int
    instructions: tuple[str, ...]  # one a frame
    frames: np.ndarray  # uint8 (steps + 1, height, width, 3): before each action, and after the last
    actions: tuple[str, ...]  # a short text for each step
    success: bool
    probabilities: tuple[float, ...] = ()  # of each action; () if they were not traced

    def __post_init__(self) -> None:
        frames, steps = self.frames, len(self.actions)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(frames) != steps + 1:
            raise ValueError(f"frames: found {frames.dtype} of shape {frames.shape} for {steps} actions, expected "
                             f"uint8 ({steps + 1}, height, width, 3): one before each action and one after the last")
        if len(self.instructions) != len(frames):
            raise ValueError(f"instructions: found {len(self.instructions)} for {len(frames)} frames, expected one of "
                             "each")
        if self.probabilities and len(self.probabilities) != steps:
            raise ValueError(f"probabilities: found {len(self.probabilities)} for {steps} actions, expected one of "
                             "each")

    @property
    def step_ms(self) -> int:
        """Milliseconds of a frame in a video."""
        steps = len(self.actions)
        return _STEP_MS if steps < _LONG else max(20, 30_000 // steps // 10 * 10)


@dataclasses.dataclass(frozen=True)
class EpisodeOutcome:
    """The result of one episode; task and seed identify it."""

    seed: int
    success: bool
    steps: int
    instruction: str  # of a chain, all that were given, joined by "; "
    actions: tuple[dict[str, Any], ...] = ()  # one a step, as JSON; () if not requested
    probabilities: tuple[float, ...] = ()  # of each action; () if the policy has none
    read: str | None = None  # the text that the policy read in place of the instruction; None: the instruction
    done: tuple[bool | None, ...] = ()  # whether each goal of `run_policy` was fulfilled; None: cannot be told

    def to_json(self, *, steps: bool) -> dict[str, Any]:
        """JSON, with or without actions and probabilities."""
        content: dict[str, Any] = {"seed": self.seed, "success": self.success, "steps": self.steps,
                                   "instruction": self.instruction}
        if self.read is not None:
            content["read"] = self.read
        if self.done:
            content["done"] = list(self.done)
        if steps and self.actions:
            content["actions"] = list(self.actions)
        if steps and self.probabilities:
            content["probabilities"] = list(self.probabilities)
        return content


@dataclasses.dataclass(frozen=True)
class LostEpisode:
    """An episode without an outcome, because its process died."""

    seed: int
    reason: str


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Episodes of one policy on one task, in the order of their seeds, without the lost ones."""

    task: str
    seeds: tuple[int, ...]
    success: np.ndarray  # bool, one an episode
    steps: np.ndarray  # int64, one an episode
    lost: tuple[LostEpisode, ...] = ()
    outcomes: tuple[EpisodeOutcome, ...] = ()  # one an episode
    recordings: tuple[RolloutRecording, ...] = ()  # failures first
    seconds: float = 0.0  # of all episodes
    policy_seconds: float = 0.0  # the part spent in the policy
    completed: np.ndarray | None = None  # int64, one an episode: completed instructions of its chain
    instructions: int = 1  # of an episode; several if `completed` counts them

    @classmethod
    def of(cls, task: str, seeds: Sequence[int], ended: Mapping[int, EpisodeStatus], lost: Mapping[int, str]
           ) -> TaskResult:
        """The result of episodes by their number: the last status of ended ones, the reason of lost ones."""
        order = sorted(ended)
        chains = [chain for i in order if (chain := ended[i].chain)]
        return cls(
            task, tuple(seeds[i] for i in order), np.array([ended[i].success for i in order], bool),
            np.array([ended[i].steps for i in order], np.int64),
            tuple(LostEpisode(seeds[i], lost[i]) for i in sorted(lost)),
            tuple(EpisodeOutcome(seeds[i], ended[i].success, ended[i].steps, ended[i].instruction, done=ended[i].done)
                  for i in order),
            completed=np.array([done for done, _ in chains], np.int64) if chains else None,
            instructions=chains[0][1] if chains else 1)
