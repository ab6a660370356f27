from __future__ import annotations

import numpy as np
import pytest

from agent_jax.evaluate.recording_sums import RecordingSums, class_metrics, format_intervals


def correct(*shares: float) -> RecordingSums:
    """Recordings of 10 actions, one choice each, with these shares of correct ones."""
    sums = RecordingSums()
    for recording, share in enumerate(shares):
        for action in range(10):
            sums.add_action(recording, np.asarray([action < 10 * share]), 1.0)
    return sums


def test_intervals_are_those_of_drawing_recordings_not_steps() -> None:
    alike, unlike = correct(*[0.5] * 20), correct(*[0.0, 1.0] * 10)
    assert alike.metrics() == unlike.metrics() == {"action_accuracy": 0.5, "exact": 0.5}
    assert alike.intervals() == {"action_accuracy": (0.5, 0.5), "exact": (0.5, 0.5)}
    low, high = unlike.intervals()["action_accuracy"]
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / 20**0.5, abs=0.06)  # the normal interval of 20 draws
    assert high == pytest.approx(1 - low, abs=0.06)
    assert unlike.intervals() == unlike.intervals()


def test_one_recording_has_no_interval_and_a_metric_may_lack_in_some_recordings() -> None:
    assert correct(0.5).intervals() == {}
    sums = correct(0.5, 0.5)
    sums.add_targets(0, "language", np.asarray([1.0, 3.0]), np.asarray([True, False]), np.asarray([1.0, 1.0]))
    assert sums.metrics()["language_perplexity"] == pytest.approx(np.exp(2))
    low, high = sums.intervals()["language_perplexity"]
    assert low == high == pytest.approx(np.exp(2))  # of one recording, in the draws that have it


def test_bleu_of_summed_counts_is_that_of_the_corpus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    random, sums, texts = np.random.default_rng(0), RecordingSums(), ([], [])
    for window in range(12):
        recorded = random.integers(0, 9, random.integers(2, 14))
        predicted = np.where(random.random(len(recorded)) < 0.8, recorded, 0)
        sums.add_ids(window // 3, predicted, recorded)
        for text, ids in zip(texts, (predicted, recorded), strict=True):
            text.append(" ".join(map(str, ids)))
    expected = sacrebleu.corpus_bleu(texts[0], [texts[1]], tokenize="none", force=True).score
    assert sums.metrics()["bleu4"] == pytest.approx(expected)
    low, high = sums.intervals()["bleu4"]
    assert low < expected < high


def test_macro_f1_is_the_mean_over_the_classes_that_occur() -> None:
    label, predicted = np.asarray([0, 0, 0, 1, 4]), np.asarray([0, 0, 1, 1, 0])
    # F1 by class: 0: 2 * 2 / (3 + 3), 1: 2 / (1 + 2), 4: 0
    assert class_metrics(label, predicted, np.ones(5)) == {"class_accuracy": 0.6, "macro_f1": pytest.approx(4 / 9)}
    weighted = class_metrics(label, predicted, np.asarray([1, 1, 0, 0, 0]))
    assert weighted == {"class_accuracy": 1.0, "macro_f1": 1.0}
    sums = RecordingSums()
    for recording, clip in enumerate(zip(label.tolist(), predicted.tolist(), strict=True)):
        sums.add_clip(recording, *clip)
    assert sums.confusion(3).shape == (5, 5)
    assert sums.confusion(3)[0].tolist() == [2, 1, 0, 0, 0]
    assert set(sums.intervals()) == {"class_accuracy", "macro_f1"}


def test_rows_of_the_table_show_shares_in_percent() -> None:
    rows = format_intervals({"a": ({"exact": (0.1, 0.2), "language_perplexity": (1.5, 2.0)}, 1234)})
    assert rows == [("a", "exact", "10.00% to 20.00%", "1,234"),
                    ("a", "language perplexity", "1.500 to 2.000", "1,234")]
