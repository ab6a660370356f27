"""Metrics of the texts that a model generates for held-out clips, next to those of the most frequent texts.

window --images, prompt--> Policy.say, greedy --> text --compared with the recorded answer

exact      share of texts that equal the answer
BLEU-4     of the corpus, by sacrebleu with its own tokenizer (Papineni et al. 2002); none without four words in a row
ROUGE-L    mean F-measure of the longest common subsequence of words, 0 to 100, by rouge-score (Lin 2004)
baseline   the same of always answering with the training split's most frequent answer to the same prompt; of all
           prompts, where it has not seen that one
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from agent_jax.data.pipeline.windows import Windows
from agent_jax.evaluate.recording_sums import Interval, RecordingSums
from agent_jax.policy import Policy

_BATCH_SIZE = 16  # windows

_Value = TypeVar("_Value")


@dataclasses.dataclass(frozen=True)
class GeneratedAnswer:
    """A generated text and the recorded one."""

    prompt: str
    answer: str
    generated: str
    log_probability: float
    complete: bool


@dataclasses.dataclass(frozen=True)
class TextScores:
    """Metrics of the generated texts of a domain, by name: exact, bleu4, rouge_l; without what cannot be computed."""

    texts: int
    metrics: Mapping[str, float]  # exact: 0 to 1; bleu4, rouge_l: 0 to 100
    baseline: Mapping[str, float]  # of the most frequent texts
    intervals: Mapping[str, Interval]  # 95%, over recordings
    answers: tuple[GeneratedAnswer, ...]


def generated_text(policy: Policy, windows: Windows, training: Windows, numbers: Sequence[int]) -> TextScores | None:
    """Generate the answers of some windows and score them.

    Args:
        policy: of a run with the domain of the windows.
        windows: of a domain of the layout "answer".
        training: of the same domain, from the training split, for the baseline.
        numbers: of the windows to score.

    Returns:
        None without windows.
    """
    if not numbers:
        return None
    sums, baseline, frequent, answers = RecordingSums(), RecordingSums(), _MostFrequent(training), []
    for number, one in _generated(policy, windows, numbers):
        recording = int(windows.recordings[number])
        _add(sums, recording, one.generated, one.answer)
        _add(baseline, recording, frequent.answer(one.prompt), one.answer)
        answers.append(one)
    return TextScores(len(answers), defined(sums, sums.metrics()), defined(baseline, baseline.metrics()),
                      defined(sums, sums.intervals()), tuple(answers))


def defined(sums: RecordingSums, metrics: Mapping[str, _Value]) -> dict[str, _Value]:
    """The metrics without the BLEU-4 of texts none of which has four words in a row."""
    bleu = sums.total("bleu")
    has_four_words = bleu is not None and bleu[7] > 0
    return {name: value for name, value in metrics.items() if name != "bleu4" or has_four_words}


def _generated(policy: Policy, windows: Windows, numbers: Sequence[int]) -> Iterator[tuple[int, GeneratedAnswer]]:
    for first in range(0, len(numbers), _BATCH_SIZE):
        batch = numbers[first : first + _BATCH_SIZE]
        texts = [windows.texts(number) for number in batch]
        clips = [[step.frames for step in windows.read(number, 0).steps] for number in batch]
        said = policy.say(clips, [prompt for prompt, _ in texts], domain=windows.domain.name)
        for number, (prompt, answer), text in zip(batch, texts, said, strict=True):
            yield number, GeneratedAnswer(prompt, answer, text.text, text.log_probability, text.complete)


class _MostFrequent:
    """The most frequent answers of a split."""

    def __init__(self, windows: Windows) -> None:
        by_prompt: dict[str, Counter[str]] = defaultdict(Counter)
        for (prompt, answer), count in windows.text_counts().items():
            by_prompt[prompt][answer] += count
        every: Counter[str] = sum(by_prompt.values(), Counter())
        self._of_all = every.most_common(1)[0][0]
        self._by_prompt = {prompt: counts.most_common(1)[0][0] for prompt, counts in by_prompt.items()}

    def answer(self, prompt: str) -> str:
        """The most frequent answer to a prompt."""
        return self._by_prompt.get(prompt, self._of_all)


def _add(sums: RecordingSums, recording: int, text: str, answer: str) -> None:
    text, answer = text.strip(), answer.strip()
    sums.add_share(recording, "exact", float(text == answer))
    sums.add_texts(recording, text, answer, tokenize="13a")
    if (rouge := _rouge()) is not None:
        sums.add_share(recording, "rouge_l", 100 * rouge.score(answer, text)["rougeL"].fmeasure)


@functools.cache
def _rouge() -> Any:
    """Google's ROUGE; None if it is not installed."""
    if importlib.util.find_spec("rouge_score") is None:
        return None
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


def format_text_scores(domain: str, scores: TextScores) -> str:
    """A line of metrics, and the first texts."""
    shown = {"exact": ("exact", "{:.2%}"), "bleu4": ("BLEU-4", "{:.1f}"), "rouge_l": ("ROUGE-L", "{:.1f}")}
    figures = ", ".join(
        f"{title} {form.format(scores.metrics[name])} (most frequent text {form.format(scores.baseline[name])})"
        for name, (title, form) in shown.items() if name in scores.metrics and name in scores.baseline)
    lines = [f"{domain}, generated: {scores.texts:,} texts, {figures}"]
    lines += [f"  {one.prompt!r} -> {one.generated!r}, recorded {one.answer!r}" for one in scores.answers[:5]]
    return "\n".join(lines)
