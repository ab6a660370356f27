"""Metrics of the actions that a policy decodes on recorded frames with its own earlier actions as history.

    window of a record --images, instruction, state--> Policy.step --> ids of each action --> compared with the recorded

Unlike in offline.py, no id before a prediction is the recorded one. The policy starts again at every window, the frames
stay the recorded ones, and decoding is greedy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from agent_jax.data.pipeline.windows import Windows
from agent_jax.data.store.split import Split
from agent_jax.evaluate.action_accuracy import BinError, ButtonScore, DecodedScores
from agent_jax.evaluate.recording_sums import Interval, RecordingSums
from agent_jax.evaluate.replay_frames import window_observations
from agent_jax.policy import Policy

_BATCH_SIZE = 16  # windows


@dataclasses.dataclass(frozen=True)
class FreeRunningScores:
    """Metrics of the actions of a domain."""

    windows: int
    actions: int
    exact: float  # share of actions that equal the recorded one
    bleu4: float | None  # 0 to 100; None if sacrebleu is not installed
    errors: tuple[BinError, ...]
    buttons: tuple[ButtonScore, ...]
    intervals: Mapping[str, Interval]  # 95%, over recordings


def free_running(policy: Policy, windows: Windows, records: Split, numbers: Sequence[int]) -> FreeRunningScores | None:
    """Decode the actions of some windows and score them.

    Args:
        policy: greedy, with sliding history.
        windows: of the policy's domain.
        records: the split of the windows.
        numbers: of the windows to score.

    Returns:
        None without any action that counts.
    """
    spec = policy.domain.spec
    assert spec is not None
    sums, decoded, actions = RecordingSums(), DecodedScores(spec), 0
    for first in range(0, len(numbers), _BATCH_SIZE):
        batch = numbers[first : first + _BATCH_SIZE]
        for number, found in zip(batch, _decode(policy, windows, records, batch), strict=True):
            recording, steps = int(windows.recordings[number]), windows.read(number, 0).steps
            recorded = steps[: int(windows.steps[number])]  # the steps after them are padding
            pairs = [(ids, step.action_ids, step.action_weight) for ids, step in zip(found, recorded, strict=False)
                     if step.action_weight]
            if not pairs:
                continue
            sums.add_ids(recording, *(np.concatenate([pair[k] for pair in pairs]) for k in (0, 1)))
            for ids, recorded, weight in pairs:
                sums.add_action(recording, np.asarray([np.array_equal(ids, recorded)]), weight)
                decoded.add(ids, recorded, weight)
            actions += len(pairs)
    metrics = sums.metrics()
    if not actions:
        return None
    intervals = {name: interval for name, interval in sums.intervals().items() if name in ("exact", "bleu4")}
    return FreeRunningScores(len(numbers), actions, metrics["exact"], metrics.get("bleu4"), decoded.errors(),
                             decoded.buttons(), intervals)


def _decode(policy: Policy, windows: Windows, records: Split, numbers: Sequence[int]) -> list[list[np.ndarray]]:
    """The ids of the action of each step of each window; at its end perhaps of some more."""
    found: list[list[np.ndarray]] = [[] for _ in numbers]
    observations = window_observations(policy, windows, records, numbers)
    spec = policy.domain.spec
    assert spec is not None
    # Every batch has the same size, so that few shapes are compiled; the actions of ended windows are ignored.
    ids = range(_BATCH_SIZE)
    policy.reset(ids)
    for step in range(0, max(map(len, observations)), policy.domain.actions_per_image):
        rows = [observations[min(row, len(numbers) - 1)] for row in ids]
        policy.step([policy.prepare(*row[min(step, len(row) - 1)]) for row in rows], ids)
        for row in range(len(numbers)):
            if step < len(observations[row]):
                found[row] += spec.automaton.split(policy.last_ids[row])
    policy.forget(ids)
    return found
