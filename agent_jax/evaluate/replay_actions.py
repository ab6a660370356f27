"""Recorded actions, executed again in the simulator they were recorded in, from the same seed.

    raw            the recorded values: must reach the recorded success, or simulator and data have come apart
    encode-decode  the values after the ActionSpec's tokens and back: the ceiling that quantisation leaves to an agent

A data set of `agent_jax.envs.collect` says all that is needed: its simulator, and with each episode the task and seed.
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
from agent_jax.evaluate.rollouts import Lost, run_whole
from agent_jax.evaluate.statistics import success_summary
from agent_jax.text_table import ruled


@dataclasses.dataclass(frozen=True)
class RecordedActions:
    """One recorded episode: only solved ones are stored."""

    task: str
    seed: int
    actions: dict[str, np.ndarray]  # a row a step
    steps: int


@dataclasses.dataclass(frozen=True)
class ReplayedTask:
    """What became of the episodes of one task."""

    task: str
    episodes: int
    raw: dict[str, Any]  # success, episodes, ci95
    decoded: dict[str, Any]  # likewise, after encode-decode
    different: tuple[int, ...]  # seeds whose raw actions did not succeed, or not at the recorded step
    lost: tuple[Lost, ...]  # whose process died


def recorded_episodes(store: Store, domain: Domain, split: str, most: int = 0) -> list[RecordedActions]:
    """Whole episodes with their task and seed.

    Args:
        store: of `agent_jax.envs.collect`.
        domain: whose ActionSpec names the fields of an action.
        split: of the store.
        most: at most so many, spread evenly over the split; 0: all.

    Raises:
        ValueError: the data set does not say from which task and seed its episodes are.
    """
    if not gathered_from(store):
        raise ValueError(f"{store.directory}: does not say from which simulator, task and seed its episodes are, so "
                         "they cannot be begun again; expected a data set of `python -m agent_jax.envs.collect`")
    assert domain.spec is not None
    paths = {key: store.step_field(key).path for key in domain.spec.spec.fields}
    episodes = store.split(split)
    chosen = np.unique(np.linspace(0, len(episodes) - 1, min(most or len(episodes), len(episodes))).round().astype(int))
    return [_read(episodes[number], paths) for number in chosen.tolist()]


def gathered_from(store: Store) -> str:
    """The environment of this package that a data set was gathered from; "" if it was not.

    Any other name is left to the user to give: environments are imported, and a data set must not choose what is.
    """
    name = str(store.metadata.get("demonstrations", {}).get("environment", "")) if "episode_id" in store.fields else ""
    return name if name in NAMES else ""


def _read(episode: Episode, paths: dict[str, str]) -> RecordedActions:
    name = bytes(episode.value("episode_id")).decode("utf-8")
    task, _, seed = name.rpartition("/")
    if not task or not seed.isdecimal():
        raise ValueError(f"{episode.where}: episode_id {name!r} is not TASK/SEED, so it cannot be begun again; gather "
                         "the data set anew by `python -m agent_jax.envs.collect`")
    if int(np.ravel(episode.value("start"))[0]):
        raise ValueError(f"{episode.where}: begins in the middle of an episode; expected whole ones")
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
            run_whole(simulators, task, seeds, [Command("replay", {"task": task, "seed": episode.seed}, actions)
                                                for episode, actions in zip(members, versions, strict=True)])
            for versions in ([episode.actions for episode in members],
                             [quantised(episode.actions, domain) for episode in members]))
        steps = {episode.seed: episode.steps for episode in members}
        different = tuple(seed for seed, success, taken in zip(raw.seeds, raw.success, raw.steps, strict=True)
                          if not success or taken != steps[seed])
        lost = (*raw.lost, *decoded.lost)
        if not raw.seeds or not decoded.seeds:
            raise RuntimeError(f"task {task!r}: all {len(members)} episodes were lost, since their processes died "
                               f"({lost[0].reason}); their messages are above")
        found.append(ReplayedTask(task, len(members), success_summary(raw.success), success_summary(decoded.success),
                                  different, lost))
    return found


def quantised(actions: dict[str, np.ndarray], domain: Domain) -> dict[str, np.ndarray]:
    """The actions as an agent could have said them: through the ActionSpec's tokens and back."""
    assert domain.spec is not None
    rows = len(next(iter(actions.values())))
    decoded = [domain.spec.decode(domain.spec.encode({key: values[row] for key, values in actions.items()}))
               for row in range(rows)]
    return {key: np.stack([np.asarray(step[key]) for step in decoded]) for key in actions}


def format_replayed(tasks: list[ReplayedTask]) -> str:
    """The outcome as aligned text, a line a task."""
    rows = [("task", "episodes", "raw", "encode-decode", "95% interval", "unlike the record")]
    for task in tasks:
        low, high = task.decoded["ci95"]
        rows.append((task.task, str(task.episodes), f"{task.raw['success']:.1%}", f"{task.decoded['success']:.1%}",
                     f"{low:.1%} to {high:.1%}", str(len(task.different))))
    return ruled(rows, words=1)
