"""Compare the acting path with the evaluation forward on recorded frames.

    record --Windows.read--> row -----------------> Agent, all at once ----> logits of the legal ids --.
        `--camera images, instruction, state------> Policy.prepare, Policy.follow, ------------------> same choice?
                                                    step by step with the recorded actions as history

Both receive the recorded ids before each choice. A difference means that acting and training have different inputs:
another resize, order of cameras or row. Choices must be equal where the forward's two best logits differ by more than
`NEAR`.
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
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.models.agent import Agent, Params
from agent_jax.policy import Policy
from agent_jax.runtime.compiler_options import compiler_options

NEAR = 1e-3  # closer logits can have either order
_BATCH_SIZE = 16  # windows


@dataclasses.dataclass(frozen=True)
class ReplayedFrames:
    """Choices of the acting path and the evaluation forward, and their accuracy."""

    windows: int
    choices: int
    different: int  # choices that differ although the forward's two best logits differ by more than NEAR
    near_ties: int  # choices whose two best logits are closer
    forward_accuracy: float  # share of choices, as in `evaluate offline`
    acting_accuracy: float
    largest_difference: float  # between logits
    forward: ActionAccuracy
    acting: ActionAccuracy


def replay_frames(trained: TrainedRun, params: Params, policy: Policy, store: Store, split: str, *,
                  most: int = 0) -> ReplayedFrames:
    """Compare every choice of every action in the windows of a split.

    Args:
        trained: the checkpoint.
        params: its parameters.
        policy: of the checkpoint, greedy and with sliding history.
        store: the data of the policy's domain.
        split: of the store.
        most: maximum number of windows, spread evenly over the split; 0: all.

    Raises:
        ValueError: the split does not fit the domain, or has nothing to compare.
    """
    domain = dataclasses.replace(policy.domain, sampling="consecutive")
    windows = Windows(domain, store, split)
    compared = np.arange(len(windows))
    whole, k = "", domain.actions_per_image
    if domain.video:  # an image of a clip is encoded with the later ones: acting has received all at its last step only
        compared = compared[windows.steps[compared] == domain.window]
        whole = f" of {domain.window} recorded steps, since only the actions after a clip's last image are compared"
    nothing = (f"{store.directory}, split {split!r}: found nothing to compare in {len(windows)} windows, "
               f"expected windows{whole}")
    if not len(compared):
        raise ValueError(nothing)
    chosen = compared[np.unique(np.linspace(0, len(compared) - 1, min(most or len(compared), len(compared))).round()
                                .astype(int))]
    evaluated, records, found = _Forward(trained, params, domain), store.split(split), []
    assert domain.spec is not None
    forward, acting = ActionScores(domain.spec), ActionScores(domain.spec)
    for first in range(0, len(chosen), _BATCH_SIZE):
        numbers = chosen[first : first + _BATCH_SIZE].tolist()
        laid = [windows.read(number, 0) for number in numbers]
        acted = _act(policy, windows, records, numbers, laid)
        for window, ours, theirs, number in zip(laid, evaluated(laid), acted, numbers, strict=True):
            recorded_steps = int(windows.steps[number])  # the steps after them are padding
            for step in range(domain.window - k if domain.video else 0, recorded_steps):
                recorded = window.steps[step]
                choice = recorded.action_choices >= 0
                found.append(_compare(recorded, ours[step][choice], theirs[step], domain.spec))
                for scores, logits_CA in ((forward, ours[step][choice]), (acting, theirs[step])):
                    best_C = best_legal(domain.spec, recorded.action_ids, logits_CA)
                    scores.add(recorded.action_ids, best_C, recorded.action_weight)
    of_forward, of_acting = forward.result(), acting.result()
    if of_forward is None or of_acting is None:
        raise ValueError(nothing)
    counts = np.concatenate(found)
    return ReplayedFrames(len(chosen), len(counts), int(counts[:, 0].sum()), int(counts[:, 1].sum()),
                          of_forward.accuracy, of_acting.accuracy, float(counts[:, 2].max()), of_forward, of_acting)


class _Forward:
    """The evaluation forward, with one window a row."""

    def __init__(self, trained: TrainedRun, params: Params, domain: Domain) -> None:
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
        """Logits (ids of the action, A) by window and step."""
        rows = [lay_out((window,), self._size, 1 + self._patches, self._patches) for window in windows]
        rows += [rows[-1]] * (_BATCH_SIZE - len(rows))
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
    """The policy's logits (choices, A) by window and step, with the recorded actions as history."""
    found: list[list[np.ndarray]] = [[] for _ in numbers]
    observations = window_observations(policy, windows, records, numbers)
    # Every batch has the same size, so that few shapes are compiled; the outputs of ended windows are ignored.
    ids, k = range(_BATCH_SIZE), policy.domain.actions_per_image
    policy.reset(ids)
    for step in range(0, max(map(len, observations)), k):
        rows = [(i, min(step, len(observations[i]) - 1)) for i in (min(row, len(numbers) - 1) for row in ids)]
        prepared = [policy.prepare(*observations[i][t]) for i, t in rows]
        actions = [[one.action_ids for one in laid[i].steps[t : t + k]] for i, t in rows]
        actions = [one + one[-1:] * (k - len(one)) for one in actions]  # where the window ends amid them
        answers = policy.follow(prepared, ids, [np.concatenate(one) for one in actions])
        for row, logits in enumerate(answers[: len(numbers)]):
            if step < len(observations[row]):
                counts = [int((laid[row].steps[t].action_choices >= 0).sum())
                          for t in range(step, min(step + k, len(laid[row].steps)))]
                found[row] += np.split(logits, np.cumsum(counts))[: len(counts)]
    policy.forget(ids)
    return found


def window_observations(policy: Policy, windows: Windows, records: Split, numbers: Sequence[int]
                        ) -> list[list[tuple[dict[str, np.ndarray], str, dict[str, np.ndarray] | None]]]:
    """The observations of each step of some windows."""
    return [_recorded_observations(policy.domain, records.fields, records[int(windows.record[number])],
                                   int(windows.start[number]), int(windows.steps[number]))
            for number in numbers]


def _recorded_observations(domain: Domain, fields: Any, episode: Episode, start: int, count: int
                           ) -> list[tuple[dict[str, np.ndarray], str, dict[str, np.ndarray] | None]]:
    """The observations of each step as an agent would receive them: camera images, instruction, state."""
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
    """(choices, 3) of one action: different, near tie, largest difference between logits."""
    automaton, rows = bound.automaton, []
    for state, forward_A, acting_A in zip(step.action_choices[step.action_choices >= 0], forward_CA, acting_CA,
                                          strict=True):
        legal_A = automaton.next_QA[state] >= 0
        ours, theirs = forward_A[legal_A], acting_A[legal_A]
        second, best = np.sort(ours)[-2:]
        near, differ = best - second <= NEAR, np.argmax(ours) != np.argmax(theirs)
        rows.append((differ and not near, near, np.max(np.abs(ours - theirs))))
    return np.asarray(rows, np.float64).reshape(-1, 3)
