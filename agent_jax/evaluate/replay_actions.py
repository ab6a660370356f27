"""Execute recorded actions again in the simulator, from the recorded seeds.

    raw            the recorded values: they must reach the recorded success, otherwise simulator and data disagree
    encode-decode  the values after encoding to tokens and decoding: the best success an agent can have

The data set must come from `agent_jax.envs.collect`, which stores its simulator and the task and seed of each episode.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np

from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.store.episode import Episode
from agent_jax.data.store.store import Store
from agent_jax.envs import NAMES
from agent_jax.envs.workers.simulators import Command, Simulators
from agent_jax.evaluate.outcomes import LostEpisode
from agent_jax.evaluate.rollouts import run_whole
from agent_jax.evaluate.statistics import success_summary
from agent_jax.text_table import ruled


@dataclasses.dataclass(frozen=True)
class RecordedActions:
    """The actions of one recorded episode, which succeeded."""

    task: str
    seed: int
    actions: dict[str, np.ndarray]  # one row a step
    steps: int


@dataclasses.dataclass(frozen=True)
class ReplayedTask:
    """Results of the replayed episodes of one task."""

    task: str
    episodes: int
    raw: dict[str, Any]  # success, episodes, ci95
    decoded: dict[str, Any]  # the same after encode-decode
    different: tuple[int, ...]  # seeds whose raw actions did not succeed at the recorded step
    lost: tuple[LostEpisode, ...]


def recorded_episodes(store: Store, domain: Domain, split: str, most: int = 0) -> list[RecordedActions]:
    """Read whole episodes with their task and seed.

    Args:
        store: of `agent_jax.envs.collect`.
        domain: its ActionSpec has the fields of an action.
        split: of the store.
        most: maximum number of episodes, spread evenly over the split; 0: all.

    Raises:
        ValueError: the data set does not have task and seed of its episodes.
    """
    if not collected_from(store):
        raise ValueError(f"{store.directory}: found no simulator, task and seed of its episodes, which are needed to "
                         "replay them; expected a data set of `python -m agent_jax.envs.collect`")
    assert domain.spec is not None
    paths = {key: store.step_field(key).path for key in domain.spec.spec.fields}
    episodes = store.split(split)
    chosen = np.unique(np.linspace(0, len(episodes) - 1, min(most or len(episodes), len(episodes))).round().astype(int))
    return [_read(episodes[number], paths) for number in chosen.tolist()]


def collected_from(store: Store) -> str:
    """The environment of this package that a data set was collected from; "" if there is none.

    Other names are ignored: environments are imported, and a data set must not choose what is imported.
    """
    name = str(store.metadata.get("demonstrations", {}).get("environment", "")) if "episode_id" in store.fields else ""
    return name if name in NAMES else ""


def _read(episode: Episode, paths: dict[str, str]) -> RecordedActions:
    name = bytes(episode.value("episode_id")).decode("utf-8")
    task, _, seed = name.rpartition("/")
    if not task or not seed.isdecimal():
        raise ValueError(f"{episode.where}: found episode_id {name!r}, expected TASK/SEED; collect the data set "
                         "again with `python -m agent_jax.envs.collect`")
    if int(np.ravel(episode.value("start"))[0]):
        raise ValueError(f"{episode.where}: found the middle part of an episode, expected whole episodes")
    actions = {key: np.asarray(episode.values(path, 0, episode.steps)) for key, path in paths.items()}
    return RecordedActions(task, int(seed), actions, episode.steps)


def replay_actions(simulators: Simulators, episodes: list[RecordedActions], domain: Domain) -> list[ReplayedTask]:
    """Execute the episodes twice, raw and after encode-decode, task by task."""
    by_task: dict[str, list[RecordedActions]] = defaultdict(list)
    for episode in episodes:
        by_task[episode.task].append(episode)
    found = []
    for task, members in sorted(by_task.items()):
        seeds = [episode.seed for episode in members]
        raw, decoded = (
            run_whole(simulators, task, seeds, [Command("replay", {"task": task, "seed": seed, "actions": actions})
                                                for seed, actions in zip(seeds, versions, strict=True)])
            for versions in ([episode.actions for episode in members],
                             [quantised(episode.actions, domain) for episode in members]))
        steps = {episode.seed: episode.steps for episode in members}
        different = tuple(seed for seed, success, taken in zip(raw.seeds, raw.success, raw.steps, strict=True)
                          if not success or taken != steps[seed])
        lost = (*raw.lost, *decoded.lost)
        if not raw.seeds or not decoded.seeds:
            raise RuntimeError(f"task {task!r}: all {len(members)} episodes were lost because their processes died "
                               f"({lost[0].reason}); their messages are above")
        found.append(ReplayedTask(task, len(members), success_summary(raw.success), success_summary(decoded.success),
                                  different, lost))
    return found


def quantised(actions: dict[str, np.ndarray], domain: Domain) -> dict[str, np.ndarray]:
    """The actions after encoding to the ActionSpec's tokens and decoding."""
    assert domain.spec is not None
    rows = len(next(iter(actions.values())))
    decoded = [domain.spec.decode(domain.spec.encode({key: values[row] for key, values in actions.items()}))
               for row in range(rows)]
    return {key: np.stack([np.asarray(step[key]) for step in decoded]) for key in actions}


def format_replayed(tasks: list[ReplayedTask]) -> str:
    """The results as aligned text, a line a task."""
    rows = [("task", "episodes", "raw", "encode-decode", "95% interval", "different")]
    for task in tasks:
        low, high = task.decoded["ci95"]
        rows.append((task.task, str(task.episodes), f"{task.raw['success']:.1%}", f"{task.decoded['success']:.1%}",
                     f"{low:.1%} to {high:.1%}", str(len(task.different))))
    return ruled(rows, words=1)
