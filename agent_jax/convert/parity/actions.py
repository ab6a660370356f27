"""Compares the action choices of an exported agent with ours: teacher-forced, among the legal ids.

Ours come from the whole row; PyTorch's from the whole row, and also id by id with the KV cache, as its policy acts.
Choices must be equal where our two best logits differ by more than `NEAR`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from agent_jax.convert.exported.policy import ExportedPolicy
from agent_jax.convert.parity.tolerance import STACK, Comparison, compare
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Window, window_usage

NEAR = 1e-3  # logits closer than this may come in either order


@dataclasses.dataclass(frozen=True)
class ChoiceCounts:
    """The number of choices compared."""

    compared: int
    different: int  # although our two best logits differ by more than NEAR
    near_ties: int  # compared choices whose two best logits do not

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        return dataclasses.asdict(self)

    def __add__(self, other: ChoiceCounts) -> ChoiceCounts:
        return ChoiceCounts(self.compared + other.compared, self.different + other.different,
                            self.near_ties + other.near_ties)


def counted(ours: Sequence[np.ndarray], *theirs: Sequence[np.ndarray]) -> ChoiceCounts:
    """Compare the best of the logits of each choice with the best of ours."""
    compared = different = ties = 0
    for mine, *others in zip(ours, *theirs, strict=True):
        second, best = np.sort(mine)[-2:]
        for other in others:
            compared, ties = compared + 1, ties + int(best - second <= NEAR)
            different += bool(best - second > NEAR and np.argmax(mine) != np.argmax(other))
    return ChoiceCounts(compared, different, ties)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """One id of an action with several legal ids."""

    sample: int
    step: int
    row: int
    target: int  # of the row
    legal_A: np.ndarray
    teacher: int


def compare_actions(ours_BTK: np.ndarray, theirs_BTK: np.ndarray | None, rows: Sequence[Sequence[Window]],
                    domains: Mapping[str, Domain], policy_of: Callable[[str], ExportedPolicy]
                    ) -> tuple[ChoiceCounts, list[Comparison]]:
    """Compare every choice of every action in the rows.

    Args:
        ours_BTK: our logits of all targets.
        theirs_BTK: PyTorch's, of the whole row; None: only those of the policy are compared.
        rows: samples of each row.
        domains: by name.
        policy_of: returns the policy of the exported folder in a domain.

    Returns:
        The number of choices, and for each domain a comparison of the cached logits with ours.
    """
    counts, comparisons = ChoiceCounts(0, 0, 0), []
    for domain in domains.values():
        if domain.spec is None:
            continue
        samples = [(number, window) for number, (_, window) in enumerate(places(rows))
                   if window.domain_index == domain.index]
        choices = [choice for number, _ in samples for choice in _choices(number, rows, domain)]
        cached = _cached(policy_of(domain.name), samples, choices)
        if domain.video:  # in the row an image attends to later ones of its clip, which acting has not seen
            last = {number: len(window.steps) - 1 for number, window in samples}
            usable = [i for i, choice in enumerate(choices) if choice.step == last[choice.sample]]
            choices, cached = [choices[i] for i in usable], [cached[i] for i in usable]
        ours = [ours_BTK[choice.row, choice.target, choice.legal_A] for choice in choices]
        theirs = [] if theirs_BTK is None else [
            [theirs_BTK[choice.row, choice.target, choice.legal_A] for choice in choices]]
        counts += counted(ours, *theirs, cached)
        if choices:
            comparisons.append(compare(f"cached logits: {domain.name}", np.concatenate(cached), np.concatenate(ours),
                                       STACK))
    return counts, comparisons


def places(rows: Sequence[Sequence[Window]]) -> list[tuple[int, Window]]:
    """(row, sample) of every sample, in order."""
    return [(number, window) for number, row in enumerate(rows) for window in row]


def first_target(sample: int, rows: Sequence[Sequence[Window]]) -> int:
    """The first target, in its row, of a sample's actions or answer."""
    row, window = places(rows)[sample]
    before = [other for other in places(rows)[:sample] if other[0] == row]
    target = sum(window_usage(other, 1).targets for _, other in before)
    return target + (0 if window.prompt else len(window.text_ids) - 1)


def _choices(sample: int, rows: Sequence[Sequence[Window]], domain: Domain) -> list[_Choice]:
    assert domain.spec is not None
    automaton, found = domain.spec.automaton, []
    (row, window), target = places(rows)[sample], first_target(sample, rows)
    for number, step in enumerate(window.steps):
        state = automaton.start
        for token in step.action_ids.tolist():
            legal_A = automaton.legal(state)
            if len(legal_A) > 1:
                found.append(_Choice(sample, number, row, target, legal_A, token))
            state, target = automaton.advance(state, token), target + 1
    return found


def _cached(policy: ExportedPolicy, samples: Sequence[tuple[int, Window]], choices: Sequence[_Choice]
            ) -> list[np.ndarray]:
    """Logits of the legal ids at each choice from the exported policy, for all samples in one batch."""
    found: dict[int, np.ndarray] = {}
    for number in range(max(len(window.steps) for _, window in samples)):
        acting = [(sample, window) for sample, window in samples if number < len(window.steps)]
        steps = [window.steps[number] for _, window in acting]
        names = [sample for sample, _ in acting]
        encoded = policy.observe([step.frames for step in steps], names, None)
        now = [(tokens, dataclasses.replace(observed, state_ids=step.state_ids.tolist()))
               for (tokens, observed), step in zip(encoded, steps, strict=True)]
        waiting = {sample: [i for i, choice in enumerate(choices) if (choice.sample, choice.step) == (sample, number)]
                   for sample in names}

        def force(row: int, logits: Mapping[int, float], names: Sequence[int] = names,
                  waiting: Mapping[int, list[int]] = waiting) -> int:
            choice = waiting[names[row]].pop(0)
            found[choice] = np.array([logits[token] for token in choices[choice].legal_A.tolist()])
            return choices[choice].teacher

        policy.decode(names, [window.text_ids.tolist() for _, window in acting], now, force)
        for sample, (tokens, observed), step in zip(names, now, steps, strict=True):
            policy.remember(sample, tokens, dataclasses.replace(observed, action_ids=step.action_ids.tolist()))
    return [found[number] for number in range(len(choices))]
