"""The domains of a mixture as a table for the log, and a check of their labels.

    domain  layout   actions  window  episodes  frames  windows  weight   share  epochs
    game    actions  minecraft   9/9       100   9,000    1,000       1   50.0%    3.00

`share` is the domain's share of the windows of an epoch, `epochs` how often the whole run sees each of its windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent_jax.data.pipeline.windows import Windows
from agent_jax.text_table import aligned

_TITLES = ("domain", "layout", "actions", "window", "episodes", "frames", "windows", "weight", "share", "epochs")
_WORDS = 3  # columns of words, which are flush left


def mixture_table(windows: Sequence[Windows], epochs: float) -> list[str]:
    """The table, and for each domain with labels the accuracy of always predicting its most frequent class."""
    total = sum(len(of_domain) * of_domain.domain.weight for of_domain in windows)
    lines = [_TITLES, *(_line(of_domain, epochs, total) for of_domain in windows)]
    return [*(f"  {line}" for line in aligned(lines, _WORDS)),
            *(_classes(of_domain) for of_domain in windows if of_domain.domain.layout == "label")]


def check_labels(windows: Windows, classes: int) -> None:
    """Refuse labels that the model has no class for.

    Raises:
        ValueError: names the first such record, its label and the number of classes.
    """
    wrong = np.flatnonzero((windows.labels < 0) | (windows.labels >= classes))
    if wrong.size:
        domain, first = windows.domain, wrong[0]
        raise ValueError(f"config.data.domains.{domain.name}.label={domain.label}: found class "
                         f"{windows.labels[first]} in record {windows.record[first]} of split {windows.split_name!r}, "
                         f"expected 0 to {classes - 1}; raise config.model.classes={classes}, or fix the labels")


def _line(windows: Windows, epochs: float, total: float) -> tuple[str, ...]:
    domain, index = windows.domain, windows.index
    cut = f"{domain.window} random" if domain.sampling == "random" else f"{domain.window}/{domain.stride}"
    return (domain.name, domain.layout, domain.spec.spec.name if domain.spec else "-", cut,
            f"{len(np.unique(index.episode_N)):,}", f"{int(index.length_N.sum()) * len(domain.cameras):,}",
            f"{len(windows):,}", f"{domain.weight:g}", f"{len(windows) * domain.weight / total:.1%}",
            f"{epochs * domain.weight:,.2f}")


def _classes(windows: Windows) -> str:
    counts = np.bincount(windows.labels)
    return (f"  {windows.domain.name}: {np.count_nonzero(counts)} classes; the most frequent, {counts.argmax()}, has "
            f"{counts.max() / counts.sum():.1%} of the windows")
