"""Compares the answers of an exported agent with ours: teacher-forced, token by token among the text ids.

Ours come from the whole row; PyTorch's from the whole row, and also token by token with the KV cache, as its policy
answers. Greedy answers are equal where the choices are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from agent_jax.convert.exported.policy import ExportedPolicy
from agent_jax.convert.parity.actions import ChoiceCounts, counted, first_target, places
from agent_jax.convert.parity.tolerance import STACK, Comparison, compare
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Window


def compare_texts(ours_BTK: np.ndarray, theirs_BTK: np.ndarray | None, rows: Sequence[Sequence[Window]],
                  domains: Mapping[str, Domain], policy_of: Callable[[str], ExportedPolicy]
                  ) -> tuple[ChoiceCounts, list[Comparison]]:
    """Compare every token of every answer in the rows.

    Args:
        ours_BTK: our logits of all targets.
        theirs_BTK: PyTorch's, of the whole row; None: only those of the policy are compared.
        rows: samples of each row.
        domains: by name.
        policy_of: returns the policy of the exported folder in a domain.

    Returns:
        The number of tokens, and for each domain a comparison of the cached logits with ours.
    """
    counts, comparisons = ChoiceCounts(0, 0, 0), []
    for domain in domains.values():
        if domain.layout != "answer":
            continue
        samples = [(number, row, window) for number, (row, window) in enumerate(places(rows))
                   if window.domain_index == domain.index]
        size = domain.vocabulary.text.size
        ours, *theirs = ([logits_BTK[row, first_target(number, rows) + i, :size]
                          for number, row, window in samples for i in range(len(window.answer_ids))]
                         for logits_BTK in (ours_BTK, theirs_BTK) if logits_BTK is not None)
        cached = _cached(policy_of(domain.name), [window for *_, window in samples])
        counts += counted(ours, *theirs, cached)
        comparisons.append(compare(f"cached logits: {domain.name}", np.stack(cached), np.stack(ours), STACK))
    return counts, comparisons


def _cached(policy: ExportedPolicy, windows: Sequence[Window]) -> list[np.ndarray]:
    """Logits of the text ids before each token of the answers, sample by sample, all in one batch."""
    found: list[list[np.ndarray]] = [[] for _ in windows]

    def force(row: int, logits_K: np.ndarray) -> int:
        found[row].append(logits_K)
        return int(windows[row].answer_ids[len(found[row]) - 1])

    policy.generate(policy.domain, [window.text_ids.tolist() for window in windows],
                    [[step.frames for step in window.steps] for window in windows],
                    max(len(window.answer_ids) for window in windows), force)
    return [logits_K for row in found for logits_K in row]
