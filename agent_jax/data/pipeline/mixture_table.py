"""What each domain adds to a mixture, as lines for the log.

    domain  layout   actions  window  episodes  frames  windows  weight   share  epochs
    game    actions  minecraft   9/9       100   9,000    1,000       1   50.0%    3.00

`share` is that of the windows of an epoch, `epochs` how often the whole run sees each window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent_jax.data.pipeline.windows import Windows
from agent_jax.text_table import aligned

_TITLES = ("domain", "layout", "actions", "window", "episodes", "frames", "windows", "weight", "share", "epochs")
_WORDS = 3  # columns of words, which stand to the left; numbers stand to the right


def mixture_table(windows: Sequence[Windows], epochs: float) -> list[str]:
    """The table, and for each domain with labels what always saying its most frequent class would score.

    Args:
        windows: of the domains, in training.
        epochs: passes over the mixture in the whole run.
    """
    seen = sum(len(mine) * mine.domain.weight for mine in windows)
    lines = [_TITLES, *(_line(mine, epochs, seen) for mine in windows)]
    return [*(f"  {line}" for line in aligned(lines, _WORDS)),
            *(_classes(mine) for mine in windows if mine.domain.layout == "label")]


def check_labels(windows: Windows, classes: int) -> None:
    """Refuse labels that the model has no class for.

    Raises:
        ValueError: names the record, its label and the classes there are.
    """
    wrong = np.flatnonzero((windows.labels < 0) | (windows.labels >= classes))
    if wrong.size:
        domain, first = windows.domain, wrong[0]
        raise ValueError(f"config.data.domains.{domain.name}.label={domain.label}: found class "
                         f"{windows.labels[first]} in record {windows.record[first]} of split {windows.split_name!r}, "
                         f"expected 0 to {classes - 1}; raise config.model.classes={classes}, or mend the labels")


def _line(mine: Windows, epochs: float, seen: float) -> tuple[str, ...]:
    domain, index = mine.domain, mine.index
    cut = f"{domain.window} random" if domain.sampling == "random" else f"{domain.window}/{domain.stride}"
    return (domain.name, domain.layout, domain.spec.spec.name if domain.spec else "-", cut,
            f"{len(np.unique(index.episode_N)):,}", f"{int(index.length_N.sum()) * len(domain.cameras):,}",
            f"{len(mine):,}", f"{domain.weight:g}", f"{len(mine) * domain.weight / seen:.1%}",
            f"{epochs * domain.weight:,.2f}")


def _classes(mine: Windows) -> str:
    counts = np.bincount(mine.labels)
    return (f"  {mine.domain.name}: {np.count_nonzero(counts)} classes; the most frequent, {counts.argmax()}, has "
            f"{counts.max() / counts.sum():.1%} of the windows")
