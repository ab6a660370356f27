"""Recorded frames through the acting path, held against the evaluation forward: do they choose alike?

    record --Windows.read--> row -----------------> Agent, all at once ----> logits of the legal ids --.
        `--images as a camera gives them, instruction, state--> Policy.prepare, Policy.follow, ------> same choice?
                                                                step by step with the recorded actions as history

Both know the recorded ids before each choice. A difference means that acting sees something else than training did:
another resize, another order of cameras, another row. Choices are the same wherever the forward's two best logits
differ by more than `NEAR`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from agent_jax.actions.codec import BoundSpec
from agent_jax.data.images import prepare_image
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Step, Window, lay_out, row_size, stack
from agent_jax.data.pipeline.windows import Windows
from agent_jax.data.store.episode import Episode
from agent_jax.data.store.split import Split
from agent_jax.data.store.store import Store
from agent_jax.evaluate.action_accuracy import ActionAccuracy, ActionScores, best_legal
from agent_jax.evaluate.checkpoints import Trained
from agent_jax.models.agent import Agent, Params
from agent_jax.policy import Policy
from agent_jax.runtime.compiler_options import compiler_options

NEAR = 1e-3  # logits closer than this may be ordered either way
_TOGETHER = 16  # windows


@dataclasses.dataclass(frozen=True)
class ReplayedFrames:
    """Choices of ids made twice, and how often each was the recorded one."""

    windows: int
    choices: int
    different: int  # although the forward's two best logits differ by more than NEAR
    near_ties: int  # those that do not
    forward_accuracy: float  # share of the choices, as `evaluate offline` counts them
    acting_accuracy: float
    largest_difference: float  # of a logit
    forward: ActionAccuracy
    acting: ActionAccuracy


def replay_frames(trained: Trained, params: Params, policy: Policy, store: Store, split: str, *,
                  most: int = 0) -> ReplayedFrames:
    """Compare every choice of every action in the windows of a split.

    Args:
        trained: the checkpoint.
        params: its parameters.
        policy: of it, greedy and with sliding history.
        store: the data of the policy's domain.
        split: of the store.
        most: at most so many windows, spread evenly over the split; 0: all.

    Raises:
        ValueError: the split does not fit the domain, or holds nothing to compare.
    """
    domain = dataclasses.replace(policy.domain, sampling="consecutive")
    windows = Windows(domain, store, split)
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(most or len(windows), len(windows))).round().astype(int))
    evaluated, records, found = _Forward(trained, params, domain), store.split(split), []
    assert domain.spec is not None
    forward, acting = ActionScores(domain.spec), ActionScores(domain.spec)
    for first in range(0, len(chosen), _TOGETHER):
        numbers = chosen[first : first + _TOGETHER].tolist()
        laid = [windows.read(number, 0) for number in numbers]
        acted = _act(policy, windows, records, numbers, laid)
        for window, ours, theirs, number in zip(laid, evaluated(laid), acted, numbers, strict=True):
            real = int(windows.steps[number])  # those after it are repetitions, which no camera shows
            # An image of a clip is encoded with the later ones, which acting has not seen yet.
            kept = [real - 1] if domain.video and real == len(window.steps) else [] if domain.video else range(real)
            for step in kept:
                recorded = window.steps[step]
                choice = recorded.action_choices >= 0
                found.append(_compare(recorded, ours[step][choice], theirs[step], domain.spec))
                for scores, logits_CA in ((forward, ours[step][choice]), (acting, theirs[step])):
                    best_C = best_legal(domain.spec, recorded.action_ids, logits_CA)
                    scores.add(recorded.action_ids, best_C, recorded.action_weight)
    of_forward, of_acting = forward.result(), acting.result()
    if of_forward is None or of_acting is None:
        whole = f" of {domain.window} whole steps, whose last one is compared in a clip" if domain.video else ""
        raise ValueError(f"{store.directory}, split {split!r}: found nothing to compare in {len(chosen)} windows, "
                         f"expected windows{whole}")
    counts = np.concatenate(found)
    return ReplayedFrames(len(chosen), len(counts), int(counts[:, 0].sum()), int(counts[:, 1].sum()),
                          of_forward.accuracy, of_acting.accuracy, float(counts[:, 2].max()), of_forward, of_acting)


class _Forward:
    """The evaluation forward of windows, a row each."""

    def __init__(self, trained: Trained, params: Params, domain: Domain) -> None:
        assert domain.spec is not None
        model = trained.config.model
        self._spec, self._patches = domain.spec, model.vision.patches
        self._size = row_size([domain], 1 + self._patches, domain.images, model.language.positions)
        self._params, ids_A = jax.device_put(params, jax.local_devices()[0]), domain.spec.automaton.ids_A
        agent = Agent(model)

        def logits(params: Params, batch: Any) -> jax.Array:
            output: Any = agent.apply({"params": params}, batch, visual_tokens="all")
            return output.logits_BTK[:, :, ids_A]

        self._logits = jax.jit(logits, compiler_options=compiler_options(jax.local_devices()[0], model.dtype))

    def __call__(self, windows: Sequence[Window]) -> list[list[np.ndarray]]:
        """Of each window and step: the logits (ids of the action, A)."""
        rows = [lay_out((window,), self._size, 1 + self._patches, self._patches) for window in windows]
        rows += [rows[-1]] * (_TOGETHER - len(rows))
        logits_BTA = np.asarray(self._logits(self._params, stack(rows)))
        found = []
        for window, logits_TA in zip(windows, logits_BTA, strict=False):
            target, steps = len(window.text_ids) - 1, []
            for step in window.steps:
                steps.append(logits_TA[target : target + len(step.action_ids)])
                target += len(step.action_ids)
            found.append(steps)
        return found


def _act(policy: Policy, windows: Windows, records: Split, numbers: Sequence[int],
         laid: Sequence[Window]) -> list[list[np.ndarray]]:
    """Of each window and step: the logits (choices, A) that the policy heard, the recorded actions behind it."""
    heard: list[list[np.ndarray]] = [[] for _ in numbers]
    seen = [_observations(policy.domain, records.fields, records[int(windows.record[number])],
                          int(windows.start[number]), int(windows.steps[number])) for number in numbers]
    # Always as many rows, all of one length, so that few shapes are compiled: those that have ended, and those that
    # fill up the batch, act along and are not listened to.
    ids = range(_TOGETHER)
    policy.reset(ids)
    for step in range(max(map(len, seen))):
        places = [(i, min(step, len(seen[i]) - 1)) for i in (min(row, len(numbers) - 1) for row in ids)]
        prepared = [policy.prepare(*seen[i][t]) for i, t in places]
        answers = policy.follow(prepared, ids, [laid[i].steps[t].action_ids for i, t in places])
        for row, logits in enumerate(answers[: len(numbers)]):
            if step < len(seen[row]):
                heard[row].append(logits)
    policy.forget(ids)
    return heard


def _observations(domain: Domain, fields: Any, episode: Episode, start: int, count: int
                  ) -> list[tuple[dict[str, np.ndarray], str, dict[str, np.ndarray] | None]]:
    """What an agent would be shown at each step: images as the camera gave them, instruction, state."""
    stop, instruction = start + count, episode.texts(domain.instruction)[start]
    images = {name: [prepare_image(image, 0) for image in episode.values(path, start, stop)]
              for name, path in zip(domain.camera_names, domain.cameras, strict=True)}
    states = None
    if domain.state is not None:
        paths = {key: next(path for path in (f"steps/{key}", f"steps/observation/{key}") if path in fields)
                 for key in domain.state.spec.fields}
        states = {key: episode.values(path, start, stop) for key, path in paths.items()}
    return [({name: camera[t] for name, camera in images.items()}, instruction,
             None if states is None else {key: np.asarray(values[t]) for key, values in states.items()})
            for t in range(count)]


def _compare(step: Step, forward_CA: np.ndarray, acting_CA: np.ndarray, bound: BoundSpec) -> np.ndarray:
    """(choices, 3) of one action: different, near tie, largest difference of a logit."""
    automaton, rows = bound.automaton, []
    for state, forward_A, acting_A in zip(step.action_choices[step.action_choices >= 0], forward_CA, acting_CA,
                                          strict=True):
        legal_A = automaton.next_QA[state] >= 0
        ours, theirs = forward_A[legal_A], acting_A[legal_A]
        second, best = np.sort(ours)[-2:]
        near, differ = best - second <= NEAR, np.argmax(ours) != np.argmax(theirs)
        rows.append((differ and not near, near, np.max(np.abs(ours - theirs))))
    return np.asarray(rows, np.float64).reshape(-1, 3)
