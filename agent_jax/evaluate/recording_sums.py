"""What a split's metrics are computed from, summed for each recording, and their 95% intervals.

    windows --add--> sums by recording --one weight a recording--> metrics
                                         1, 1, 1, 1, ...           of the split
                                         0, 2, 1, 0, ...           of one draw of the bootstrap

Windows of one recording resemble each other, so intervals are percentiles over draws of whole recordings with
replacement (cluster bootstrap; Efron and Tibshirani 1993, chapters 8 and 13).
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 1000
Interval = tuple[float, float]


class RecordingSums:
    """Sums over the windows of a domain, by recording. Add all windows before reading metrics: these are cached."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, np.ndarray]] = {}
        self._clips: list[tuple[int, int, int]] = []  # recording, class, predicted class
        self._number: dict[int, int] = {}  # of each recording

    def add_targets(self, recording: int, kind: str, nll: np.ndarray, correct: np.ndarray, weight: np.ndarray) -> None:
        """Count the targets of one kind ("action", "language") in a window."""
        self._add(recording, kind, [nll @ weight, correct @ weight, weight.sum(), (weight > 0).sum()])

    def add_action(self, recording: int, correct_C: np.ndarray, weight: float) -> None:
        """Count an action by whether each of its C choices is correct."""
        self._add(recording, "choices", [weight * correct_C.sum(), weight * len(correct_C)])
        self._add(recording, "exact", [weight * correct_C.all(), weight])

    def add_share(self, recording: int, name: str, value: float) -> None:
        """Count a value whose mean is the metric `name`."""
        self._add(recording, f"mean {name}", [value, 1.0])

    def add_ids(self, recording: int, predicted: np.ndarray, recorded: np.ndarray) -> None:
        """Count the ids of a window's actions for BLEU-4."""
        # Ids, not their tokens: a token's own text may contain a space.
        texts = [" ".join(map(str, ids.tolist())) for ids in (predicted, recorded)]
        self.add_texts(recording, texts[0], texts[1], tokenize="none")

    def add_texts(self, recording: int, predicted: str, recorded: str, *, tokenize: str) -> None:
        """Count a text for BLEU-4, cut into words by a tokenizer of sacrebleu; does nothing without sacrebleu."""
        if (bleu := _bleu(tokenize)) is not None:
            found = bleu.sentence_score(predicted, [recorded])
            self._add(recording, "bleu", [*found.counts, *found.totals, found.sys_len, found.ref_len])

    def add_clip(self, recording: int, label: int, predicted: int) -> None:
        """Count a clip by its class and the predicted one."""
        self._clips.append((self._numbered(recording), label, predicted))

    @property
    def recordings(self) -> int:
        """The number of recordings."""
        return len(self._number)

    def total(self, name: str) -> np.ndarray | None:
        """The sum of a name over all recordings; None if nothing was added."""
        return sum(self._sums[name].values(), np.zeros(())) if name in self._sums else None

    def metrics(self) -> dict[str, float]:
        """The metrics of the split, by name."""
        return self._metrics(np.ones(self.recordings))

    def confusion(self, classes: int) -> np.ndarray:
        """int64 (classes, classes) or larger: clips by class and predicted class."""
        count = max([classes, *(1 + max(label, predicted) for _, label, predicted in self._clips)])
        found = np.zeros((count, count), np.int64)
        for _, label, predicted in self._clips:
            found[label, predicted] += 1
        return found

    def intervals(self) -> dict[str, Interval]:
        """The 95% interval of each metric; none with fewer than two recordings."""
        count = self.recordings
        if count < 2:
            return {}
        random = np.random.default_rng(0)
        drawn = [self._metrics(random.multinomial(count, np.full(count, 1 / count))) for _ in range(DRAWS)]
        intervals = {}
        for name in self.metrics():
            low, high = np.percentile([one[name] for one in drawn if name in one], [2.5, 97.5])
            intervals[name] = float(low), float(high)
        return intervals

    def _numbered(self, recording: int) -> int:
        return self._number.setdefault(recording, len(self._number))

    def _add(self, recording: int, name: str, values: Sequence[Any]) -> None:
        of_name, number = self._sums.setdefault(name, {}), self._numbered(recording)
        of_name[number] = of_name.get(number, 0.0) + np.asarray(values, np.float64)

    @functools.cached_property
    def _stacked(self) -> dict[str, np.ndarray]:
        """The sums of each name by recording."""
        stacked = {}
        for name, sums in self._sums.items():
            stacked[name] = np.zeros((self.recordings, len(next(iter(sums.values())))))
            for number, values in sums.items():
                stacked[name][number] = values
        return stacked

    @functools.cached_property
    def _clip_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        recording, label, predicted = np.asarray(self._clips, np.int64).T
        return recording, label, predicted

    def _metrics(self, weight_N: np.ndarray) -> dict[str, float]:
        """The metrics of the recordings, each counted `weight_N` times; without those that have no targets then."""
        sums = {name: weight_N @ stacked for name, stacked in self._stacked.items()}
        found = {}
        for kind in ("action", "language"):
            nll, correct, weight, _ = sums.get(kind, np.zeros(4))
            if weight:
                found[f"{kind}_accuracy"] = correct / weight
                found[f"{kind}_perplexity"] = math.exp(nll / weight)
        for kind, name in (("choices", "action_accuracy"), ("exact", "exact")):
            correct, weight = sums.get(kind, np.zeros(2))
            if weight:
                found[name] = correct / weight
        for name, sum_and_count in sums.items():
            if name.startswith("mean ") and sum_and_count[1]:
                found[name.removeprefix("mean ")] = sum_and_count[0] / sum_and_count[1]
        if "bleu" in sums and sums["bleu"][-2:].all():
            found["bleu4"] = _bleu_of(sums["bleu"])
        if self._clips:
            recording, label, predicted = self._clip_arrays
            found |= class_metrics(label, predicted, weight_N[recording])
        return {name: float(value) for name, value in found.items()}


def class_metrics(label: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """{"class_accuracy", "macro_f1"} of clips; the mean of F1 is over the classes that occur as one of the two."""
    if not weight.sum():
        return {}
    count = int(max(label.max(), predicted.max())) + 1
    recorded_Y, predicted_Y, both_Y = (
        np.bincount(of, counted, count) for of, counted in ((label, weight), (predicted, weight),
                                                            (label, weight * (label == predicted))))
    occurs_Y = recorded_Y + predicted_Y > 0
    f1_Y = 2 * both_Y[occurs_Y] / (recorded_Y + predicted_Y)[occurs_Y]
    return {"class_accuracy": float(both_Y.sum() / weight.sum()), "macro_f1": float(f1_Y.mean())}


@functools.cache
def _bleu(tokenize: str) -> Any:
    """sacrebleu's BLEU for the counts of single windows; None if it is not installed."""
    if importlib.util.find_spec("sacrebleu") is None:
        return None
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenize, force=True, effective_order=True)


def _bleu_of(sums: np.ndarray) -> float:
    """Corpus BLEU-4 (Papineni et al. 2002) of summed counts, 0 to 100."""
    from sacrebleu.metrics.bleu import BLEU

    counts = np.rint(sums).astype(int).tolist()
    # Short windows have no four words in a row; sacrebleu's default smoothing handles them.
    return float(BLEU.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp").score)


def format_intervals(rows: Mapping[str, tuple[Mapping[str, Interval], int]]) -> list[tuple[str, ...]]:
    """Rows of a table: domain, metric, 95% interval, number of recordings."""
    found: list[tuple[str, ...]] = []
    for domain, (intervals, recordings) in rows.items():
        for name, (low, high) in intervals.items():
            share = name not in ("bleu4", "rouge_l") and not name.endswith("perplexity")
            text = f"{low:.2%} to {high:.2%}" if share else f"{low:.3f} to {high:.3f}"
            found.append((domain, name.replace("_", " "), text, f"{recordings:,}"))
    return found
