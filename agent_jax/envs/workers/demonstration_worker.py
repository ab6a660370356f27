"""One shard of demonstrations: episodes of an expert, some of its steps replaced by random ones.

    # started by envs/collect.py: a Shard as JSON a line on stdin, progress on stdout
    python -m agent_jax.envs.workers.demonstration_worker

Replaced steps are DART's noise (Laskey et al. 2017, arXiv 1703.09327): the expert is pushed off its path and shows how
to come back. The random action is kept as history, with weight 0: it is not imitated.

A process of its own rather than a fork or a spawn of the caller: the caller has jax running, which a fork does not
survive, and a spawn would import the caller's main module, jax included, in every worker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from agent_jax.data.store.writer import ShardWriter, episode_features
from agent_jax.envs import Action, Environment, EnvironmentModule, image_shapes, load

# Seeds of episodes. Closed-loop evaluation begins at 1_000_000_000, config.closed_loop.seed.
FIRST_SEED = {"train": 0, "test": 500_000_000}
SEEDS = 500_000_000  # of each split
SEEDS_AN_EPISODE = 2  # the expert may fail at half of them
_SEED_STRIDE = 15_485_863  # a prime: collections of different config seeds begin far apart
_NOISE_STREAM = 1703  # keeps the noise apart from what else is drawn from an episode's seed
_REPORT_EVERY = 0.5  # seconds


@dataclasses.dataclass(frozen=True)
class Shard:
    """What one shard holds, and where it goes."""

    path: str
    environment: str
    level: str
    image_size: int
    noise: float
    split: str
    seed: int  # of the collection
    first: int  # its first episode's number among those of its level and split
    episodes: int


@dataclasses.dataclass
class Progress:
    """What was done since the last report."""

    episodes: int = 0
    steps: int = 0
    failed: int = 0  # episodes that the expert did not solve; they are not stored
    done: bool = False


def episode_seed(split: str, seed: int, index: int) -> int:
    """The seed of the `index`th attempt of a collection; splits never meet, nor any of them the closed loop."""
    return FIRST_SEED[split] + (seed * _SEED_STRIDE + index) % SEEDS


def write_shard(shard: Shard, report: Callable[[Progress], None]) -> None:
    """Gather the shard's episodes and write it.

    Raises:
        ValueError: the expert fails at more than half of the episodes.
    """
    module = load(shard.environment)
    environment = module.make(shard.level, shard.image_size)
    features = demonstration_features(module, shard.image_size)
    attempts = shard.episodes * SEEDS_AN_EPISODE
    kept, progress, reported = 0, Progress(), time.monotonic()
    with contextlib.closing(environment), ShardWriter(shard.path, features) as writer:
        for attempt in range(attempts):
            index = shard.first * SEEDS_AN_EPISODE + attempt
            record = demonstrate(module, environment, episode_seed(shard.split, shard.seed, index), shard.noise)
            if record is None:
                progress.failed += 1
            else:
                writer.write(record)
                kept += 1
                progress.episodes += 1
                progress.steps += len(record["steps"])
            if kept == shard.episodes:
                break
            if time.monotonic() - reported > _REPORT_EVERY:
                report(progress)
                progress, reported = Progress(), time.monotonic()
        else:
            raise ValueError(
                f"level {shard.level!r} of {shard.environment}: its expert solved {kept} of {attempts} episodes with "
                f"noise={shard.noise}, expected at least half; choose another level, or less noise"
            )
    progress.done = True
    report(progress)


def demonstration_features(module: EnvironmentModule, image_size: int) -> Any:
    """The schema of the records."""
    states = module.STATE_SPEC.fields if module.STATE_SPEC else None
    return episode_features(image_shapes(module, image_size), module.ACTION_SPEC.fields, states)


def demonstrate(module: EnvironmentModule, environment: Environment, seed: int, noise: float) -> dict[str, Any] | None:
    """One episode of the expert as a record of the store, or None if it did not solve it.

    Args:
        module: the environment's module.
        environment: of any level of it.
        seed: of the episode and its noise.
        noise: probability, at each step, that a random action of `module.NOISE` is executed in the expert's place.
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
            # The random action may be the expert's own: then it is worth imitating.
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


def main() -> None:
    """Write the shards that come in, a line each, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller as well, which then ends its workers
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as channel:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a simulator prints must not come between

        def report(progress: Progress) -> None:
            # If the caller is gone, this raises BrokenPipeError and ends the worker.
            print(json.dumps(dataclasses.asdict(progress)), file=channel, flush=True)

        for line in sys.stdin:
            write_shard(Shard(**json.loads(line)), report)


if __name__ == "__main__":
    main()
