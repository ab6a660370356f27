"""Write one shard of demonstrations: episodes of an expert in which some steps are random.

The random steps are DART's noise (Laskey et al. 2017, arXiv 1703.09327): they move the expert off its path, and it
shows how to return. A random action stays in the history with weight 0, so it is not imitated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from agent_jax.data.store.writer import ShardWriter, episode_features
from agent_jax.envs import CLIPS, Action, Environment, EnvironmentModule, image_shapes, load

# Seeds of episodes. Closed-loop evaluation begins at config.closed_loop.seed, 1_000_000_000.
FIRST_SEED = {"train": 0, "test": 500_000_000}
SEEDS = 500_000_000  # of each split
SEEDS_AN_EPISODE = 2  # the expert may fail at half of the seeds
_SEED_STRIDE = 15_485_863  # a prime: collections with different config seeds begin far apart
_NOISE_STREAM = 1703  # separates the noise from other numbers drawn from an episode's seed
_REPORT_EVERY = 0.5  # seconds


@dataclasses.dataclass(frozen=True)
class Shard:
    """The episodes of one shard and its path."""

    path: str
    environment: str
    level: str
    image_size: int
    noise: float
    split: str
    seed: int  # of the collection
    first: int  # number of its first episode within level and split
    episodes: int


@dataclasses.dataclass
class Progress:
    """Progress since the last report."""

    episodes: int = 0
    steps: int = 0
    failed: int = 0  # episodes that the expert did not solve, which are not stored


def episode_seed(split: str, seed: int, index: int) -> int:
    """The seed of attempt `index` of a collection; splits and the closed loop share no seeds."""
    return FIRST_SEED[split] + (seed * _SEED_STRIDE + index) % SEEDS


def write_shard(shard: Shard, report: Callable[[Progress], None]) -> None:
    """Record the shard's episodes and write it.

    Raises:
        ValueError: the expert fails at more than half of the episodes.
    """
    if shard.environment == CLIPS:
        _write_clips(shard, report)
        return
    module = load(shard.environment)
    environment = module.make(shard.level, shard.image_size)
    features = demonstration_features(module, shard.image_size)
    attempts = shard.episodes * SEEDS_AN_EPISODE
    solved, progress, reported = 0, Progress(), time.monotonic()
    with contextlib.closing(environment), ShardWriter(shard.path, features) as writer:
        for attempt in range(attempts):
            index = shard.first * SEEDS_AN_EPISODE + attempt
            record = demonstrate(module, environment, episode_seed(shard.split, shard.seed, index), shard.noise)
            if record is None:
                progress.failed += 1
            else:
                writer.write(record)
                solved += 1
                progress.episodes += 1
                progress.steps += len(record["steps"])
            if solved == shard.episodes:
                break
            if time.monotonic() - reported > _REPORT_EVERY:
                report(progress)
                progress, reported = Progress(), time.monotonic()
        else:
            raise ValueError(
                f"level {shard.level!r} of {shard.environment}: its expert solved {solved} of {attempts} episodes "
                f"with noise={shard.noise}, expected at least half; choose another level or less noise"
            )
    report(progress)


def _write_clips(shard: Shard, report: Callable[[Progress], None]) -> None:
    from agent_jax.envs import clips  # imports minigrid

    with ShardWriter(shard.path, clips.features(shard.image_size)) as writer:
        for number in range(shard.episodes):
            # A seed as far from the next as in write_shard, where an expert may fail.
            seed = episode_seed(shard.split, shard.seed, (shard.first + number) * SEEDS_AN_EPISODE)
            writer.write(clips.record(shard.level, seed, shard.image_size, held_out=shard.split == "test"))
    report(Progress(shard.episodes, shard.episodes * clips.IMAGES))


def demonstration_features(module: EnvironmentModule, image_size: int) -> Any:
    """The schema of the records."""
    states = module.STATE_SPEC.fields if module.STATE_SPEC else None
    return episode_features(image_shapes(module, image_size), module.ACTION_SPEC.fields, states)


def demonstrate(module: EnvironmentModule, environment: Environment, seed: int, noise: float) -> dict[str, Any] | None:
    """One episode of the expert as a record of the store; None if the expert does not solve it.

    Args:
        module: the environment's module.
        environment: an environment of the module.
        seed: of the episode and its noise.
        noise: probability at each step that a random action of `module.NOISE` replaces the expert's.
    """
    random = np.random.default_rng([seed, _NOISE_STREAM])
    observation, _ = environment.reset(seed=seed)
    expert = module.Expert(environment)
    steps: list[dict[str, Any]] = []
    taken = None
    while True:
        action = expert.act(taken)
        if expert.failed:
            return None
        taken = module.NOISE[int(random.integers(len(module.NOISE)))] if random.random() < noise else None
        executed = action if taken is None else taken
        following, reward, terminated, truncated, info = environment.step(executed)
        steps.append({
            "observation": observation,
            **executed,
            # A random action may equal the expert's; then it is imitated.
            "action_weight": float(_equal(executed, action)),
            "reward": reward,
            "is_first": not steps,
            "is_last": terminated or truncated,
            "is_terminal": terminated,
        })
        observation = following
        if terminated or truncated:
            name = f"{environment.level}/{seed}"
            record = {"episode_id": name, "recording_id": name, "start": 0, "instruction": environment.instruction}
            return {**record, "steps": steps} if info["success"] else None


def _equal(one: Action, other: Action) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
