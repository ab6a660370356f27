"""Episodes of a made-up arm for the tests of `doctor data`: a dot on a textured table, two cameras, a gripper.

Two instructions send the arm to the left or to the right from places that do not give the side away. The action is the
change of position in its step, and the gripper's command, which the gripper follows slowly.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from agent_jax.doctor.episodes import Column, DataSet, RawEpisode, Step, fingerprint_of, summarise

SIZE = 32
ACTIONS = (Column("dx"), Column("dy"), Column("gripper"))
STATES = (Column("x"), Column("y"), Column("gripper"))
RATE_HZ = 10.0


@dataclasses.dataclass
class DotEpisode:
    """Arrays of an episode, for tests to spoil."""

    split: str
    number: int
    instruction: str
    images: dict[str, np.ndarray]  # uint8 (T, 32, 32, 3)
    actions: np.ndarray  # (T, 3)
    states: np.ndarray  # (T, 3)
    times_s: np.ndarray

    def raw(self) -> RawEpisode:
        """As a reader yields it."""
        steps = (Step({camera: images[t] for camera, images in self.images.items()}, self.actions[t], self.states[t])
                 for t in range(len(self.actions)))
        return RawEpisode(self.split, self.number, self.instruction, steps, self.times_s)


def table(seed: int) -> np.ndarray:
    """A textured table, uint8 (32, 32, 3)."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(60, 160, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)


def dot_episode(number: int, length: int = 40, split: str = "train") -> DotEpisode:
    """A sound episode."""
    rng = np.random.default_rng(number + (split == "test") * 1000)
    side = 1 if number % 2 else -1
    actions = np.zeros((length, 3))
    drift = rng.normal(0, 0.2, (length, 2))
    actions[:, 0] = np.clip(0.2 * side + drift[:, 0], -0.95, 0.95)
    actions[:, 1] = np.clip(drift[:, 1], -0.95, 0.95)
    grasp = length // 2 + int(rng.integers(-5, 5))
    actions[:, 2] = np.where(np.arange(length) < grasp, -1.0, 1.0)
    position = np.concatenate([rng.normal(0, 1.5, (1, 2)), actions[:-1, :2]]).cumsum(axis=0)
    gripper = np.convolve(actions[:, 2], np.ones(3) / 3)[:length]
    states = np.concatenate([position, gripper[:, None]], axis=1)
    noise = rng.integers(0, 9, (2, length, SIZE, SIZE, 3)).astype(np.uint8)
    images = {"front": noise[0] + table(1), "wrist": noise[1] + table(2)}
    for t, (x, y) in enumerate(np.clip(position + SIZE // 2, 2, SIZE - 3).astype(int)):
        images["front"][t, y - 2 : y + 2, x - 2 : x + 2] = 250
        images["wrist"][t] = np.roll(images["wrist"][t], (y, x), axis=(0, 1))
    return DotEpisode(split, number, f"go {'right' if side > 0 else 'left'}", images, actions, states,
                      np.arange(length) / RATE_HZ)


def dot_episodes(count: int = 16) -> list[DotEpisode]:
    """A sound data set, a quarter of it for testing."""
    return [dot_episode(number, split="test" if number % 4 == 3 else "train") for number in range(count)]


def dot_data(episodes: list[DotEpisode], **changes: Any) -> DataSet:
    """As the detectors get it."""
    records = [summarise(episode.raw()) for episode in episodes]
    given = {"actions": ACTIONS, "states": STATES, "rate_hz": RATE_HZ, "absolute": False,
             "fingerprints": [fingerprint_of(record) for record in records], **changes}
    return DataSet(records, **given)
