"""Metrics of an agent on recorded data, by domain, without a simulator.

    action accuracy   share of choices whose best legal id is the recorded one; ids forced by the automaton, such as
                      most delimiters, are not counted (action_accuracy.py)
    exact             share of actions with all choices correct
    error             of each binned number and camera axis, between the decoded values of the best and the recorded id
    buttons           precision and recall of each button over the choices
    language accuracy share of targets whose best id in the whole vocabulary is the recorded one
    perplexity        exp of the mean negative log-likelihood of a target; of actions with delimiters
    BLEU-4            of the best ids of a window's actions in the whole vocabulary, with delimiters, against the
                      recorded ones (Papineni et al. 2002, by sacrebleu, over the split); as in the paper's tables
    classes           accuracy, macro-F1 and confusion of labelled clips, next to always predicting the most frequent
                      class of the training split

All are teacher-forced: the ids before each target are the recorded ones. Intervals are over recordings
(recording_sums.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.actions.codec import BoundSpec
from agent_jax.batch import Batch
from agent_jax.config import ModelConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.loader import PackedRows, validation_batches
from agent_jax.data.pipeline.windows import Windows
from agent_jax.evaluate.action_accuracy import ActionAccuracy, ActionScores, ButtonScore, format_errors
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.free_running import FreeRunningScores, free_running
from agent_jax.evaluate.generated_text import TextScores, format_text_scores, generated_text
from agent_jax.evaluate.recording_sums import Interval, RecordingSums, class_metrics, format_intervals
from agent_jax.models.agent import Agent, Params
from agent_jax.models.choice_table import ChoiceTable
from agent_jax.models.losses import token_nll
from agent_jax.policy import Policy
from agent_jax.runtime.compiler_options import compiler_options
from agent_jax.runtime.progress_bar import ProgressBar
from agent_jax.text_table import ruled

BATCH_SIZE = 16  # rows
_PRINTED_CLASSES = 20  # of a confusion matrix; larger ones are in the JSON only


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """Metrics of the targets of one kind."""

    count: int  # targets; of actions, delimiters included
    accuracy: float  # of actions: of the choices
    perplexity: float


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """Metrics of labelled clips."""

    count: int
    accuracy: float
    majority_accuracy: float  # of always predicting the most frequent class of the training split
    macro_f1: float
    majority_macro_f1: float
    confusion: tuple[tuple[int, ...], ...]  # clips by class (rows) and predicted class (columns)


@dataclasses.dataclass(frozen=True)
class DomainScores:
    """Metrics of one domain; None if it has no targets of the kind."""

    domain: str
    split: str
    windows: int
    action: TokenScores | None
    bleu4: float | None  # 0 to 100; None also if sacrebleu is not installed
    language: TokenScores | None
    classes: ClassScores | None
    choices: ActionAccuracy | None = None
    free_running: FreeRunningScores | None = None
    generated: TextScores | None = None
    recordings: int = 0
    intervals: Mapping[str, Interval] = dataclasses.field(default_factory=dict)  # 95%, by metric; {} of one recording


@dataclasses.dataclass(frozen=True)
class ForwardOutput:
    """Predictions for a batch of rows, on the host."""

    nll_BT: np.ndarray
    best_BT: np.ndarray  # best ids
    chosen_BT: np.ndarray  # best legal ids at the choices; undefined elsewhere
    class_B: np.ndarray | None  # best class of each row


def evaluate_offline(trained: TrainedRun, params: Params, domain: Domain, *, data: str = "", split: str = "",
                     rows_limit: int = 0, recordings_limit: int = 0, policy: Policy | None = None) -> DomainScores:
    """Score a domain of a checkpoint on a split of its data.

    Args:
        trained: the checkpoint.
        params: its parameters.
        domain: one of its domains.
        data: directory of the data set; "": the run's own.
        split: of the data set; "": the run's validation split.
        rows_limit: maximum number of rows, drawn with the run's seed; 0: all.
        recordings_limit: maximum number of recordings, drawn with the run's seed; 0: all.
        policy: of the checkpoint, greedy, in this domain if it has actions; what it decodes is scored as well, actions
            (free_running.py) or texts (generated_text.py), in at most `rows_limit` windows, spread evenly. None: no.

    Raises:
        FileNotFoundError, ValueError: no data set there, or one that does not fit the domain, or a recording of the
            split is in the training split as well.
    """
    store, split = trained.open_store(domain, data), trained.split(domain, split)
    trained.check_held_out(domain, store, split)
    rows = trained.rows(domain, store, split, recordings_limit).unweighted()  # as `validation_batches` does
    (windows,) = rows.windows
    sums = _ScoreSums(domain.spec, windows)
    choices = ChoiceTable.of({domain.index: domain.spec})
    first, every = 0, len(rows.plan(0))
    with ProgressBar(f"scoring {domain.name}", min(rows_limit or every, every)) as progress:
        for batch, output in forwards(trained.config.model, params, rows, rows_limit, choices):
            count = min(batch.rows, every - first)  # the others are padding
            sums.add(batch, output, [[window for _, window in rows.windows_of(0, first + row)] for row in range(count)])
            first += count
            progress.add(count)
    training = trained.training_split(domain)
    training = training if training in store.splits else split
    classes = None
    if domain.layout == "label":
        labels = trained.rows(domain, store, training).windows[0].labels
        classes = sums.classes(np.asarray(labels), trained.config.model.classes)
    acted = said = None
    if policy is not None:
        most = min(rows_limit or len(windows), len(windows))
        numbers = np.unique(np.linspace(0, len(windows) - 1, most).round().astype(int)).tolist()
        if domain.layout == "actions":
            acted = free_running(policy, windows, store.split(split), numbers)
        elif domain.layout == "answer":
            said = generated_text(policy, windows, trained.rows(domain, store, training).windows[0], numbers)
    metrics = sums.by_recording.metrics()
    return DomainScores(domain.name, split, sums.windows, sums.tokens("action"), metrics.get("bleu4"),
                        sums.tokens("language"), classes, sums.choices(), acted, said,
                        sums.by_recording.recordings, sums.by_recording.intervals())


def forwards(model: ModelConfig, params: Params, rows: PackedRows, rows_limit: int = 0,
             choices: ChoiceTable | None = None) -> Iterator[tuple[Batch, ForwardOutput]]:
    """The model's output for every row, or for at most `rows_limit`, batch by batch.

    All patches are visible and the ids before each target are the recorded ones. Without `choices` all ids are legal.
    """
    agent, device = Agent(model), jax.local_devices()[0]

    @functools.partial(jax.jit, compiler_options=compiler_options(device, model.dtype))
    def run(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        output: Any = agent.apply({"params": params}, batch, visual_tokens="all")
        weight_BT = batch.language_weight_BT + batch.action_weight_BT
        class_B = None if output.classes_BY is None else jnp.argmax(output.classes_BY, axis=-1)
        best_BT = jnp.argmax(output.logits_BTK, axis=-1)
        chosen_BT = best_BT if choices is None else choices.best(output.logits_BTK, batch)
        return token_nll(output.logits_BTK, batch.target_BT, weight_BT), best_BT, chosen_BT, class_B

    batches = -(-rows_limit // BATCH_SIZE)
    params = jax.device_put(params, device)
    for number, batch in enumerate(validation_batches(rows, BATCH_SIZE, batches)):
        output = jax.device_get(run(params, batch))  # always full batches, so one shape is compiled
        if rows_limit:
            left = rows_limit - number * BATCH_SIZE
            batch, output = jax.tree.map(lambda array_B, left=left: array_B[:left], (batch, output))
        yield batch, ForwardOutput(*output)


class _ScoreSums:
    """Sums over the batches of a domain."""

    def __init__(self, spec: BoundSpec | None, windows: Windows) -> None:
        self._spec, self._actions = spec, ActionScores(spec) if spec else None
        self._recording_W = windows.recordings.tolist()
        self.by_recording = RecordingSums()
        self.windows = 0

    def add(self, batch: Batch, output: ForwardOutput, windows: Sequence[Sequence[int]]) -> None:
        """Count a batch; `windows` has the window of each segment of each row that is not padding."""
        segment_BT = np.take_along_axis(np.asarray(batch.segment_BS), np.asarray(batch.slot_BT), axis=1)
        for row, of_row in enumerate(windows):
            self.windows += len(of_row)
            for segment, window in enumerate(of_row, 1):
                self._add_window(batch, output, row, segment_BT[row] == segment, self._recording_W[window])

    def _add_window(self, batch: Batch, output: ForwardOutput, row: int, here_T: np.ndarray, recording: int) -> None:
        best_T, target_T = output.best_BT[row], np.asarray(batch.target_BT)[row]
        for kind in ("action", "language"):
            weight_T = np.asarray(getattr(batch, f"{kind}_weight_BT")[row], np.float64) * here_T
            if weight_T.any():
                self.by_recording.add_targets(recording, kind, output.nll_BT[row], best_T == target_T, weight_T)
        weight_T = np.asarray(batch.action_weight_BT)[row] * here_T
        if len(places := np.flatnonzero(weight_T)):
            self.by_recording.add_ids(recording, best_T[places], target_T[places])
            self._add_actions(target_T[places], output.chosen_BT[row][places], weight_T[places], recording)
        if output.class_B is not None and (label := int(batch.label_B[row])) >= 0:
            self.by_recording.add_clip(recording, label, int(output.class_B[row]))

    def _add_actions(self, ids: np.ndarray, chosen: np.ndarray, weight: np.ndarray, recording: int) -> None:
        """Count the actions of a window, given as concatenated ids."""
        if self._actions is None or self._spec is None:
            return
        first = 0
        for action in self._spec.automaton.split(ids):
            choice, stop = self._spec.choices(action) >= 0, first + len(action)
            best_C, of_action = chosen[first:stop][choice], float(weight[first])
            self._actions.add(action, best_C, of_action)
            self.by_recording.add_action(recording, best_C == action[choice], of_action)
            first = stop

    def tokens(self, kind: str) -> TokenScores | None:
        """Metrics of the targets of a kind; the accuracy of actions is that of their choices."""
        total = self.by_recording.total(kind)
        if total is None:
            return None
        metrics, choices = self.by_recording.metrics(), self.choices() if kind == "action" else None
        accuracy = choices.accuracy if choices else metrics[f"{kind}_accuracy"]
        return TokenScores(int(total[-1]), accuracy, metrics[f"{kind}_perplexity"])

    def choices(self) -> ActionAccuracy | None:
        """Accuracy of the actions."""
        return self._actions.result() if self._actions else None

    def classes(self, training_labels: np.ndarray, count: int) -> ClassScores | None:
        """Metrics of the labelled clips, of `count` classes."""
        confusion_YY = self.by_recording.confusion(count)
        if not confusion_YY.any():
            return None
        count = len(confusion_YY)
        metrics, recorded_Y = self.by_recording.metrics(), confusion_YY.sum(axis=1)
        majority = int(np.argmax(np.bincount(training_labels[training_labels >= 0])))
        baseline = class_metrics(np.arange(count), np.full(count, majority), recorded_Y)
        return ClassScores(int(recorded_Y.sum()), metrics["class_accuracy"], baseline["class_accuracy"],
                           metrics["macro_f1"], baseline["macro_f1"], tuple(map(tuple, confusion_YY.tolist())))


def format_scores(scores: Sequence[DomainScores]) -> str:
    """The scores as aligned text, a line a domain; `-` for metrics without targets. Then intervals and details."""
    rows = [("domain", "split", "windows", "action accuracy", "exact", "perplexity", "BLEU-4", "language accuracy",
             "perplexity", "class accuracy", "majority")]
    for one in scores:
        action, language, classes = one.action, one.language, one.classes
        rows.append((
            one.domain, one.split, f"{one.windows:,}",
            f"{action.accuracy:.2%}" if action else "-", f"{one.choices.exact:.2%}" if one.choices else "-",
            f"{action.perplexity:.3f}" if action else "-",
            "-" if one.bleu4 is None else f"{one.bleu4:.1f}",
            f"{language.accuracy:.2%}" if language else "-", f"{language.perplexity:.3f}" if language else "-",
            f"{classes.accuracy:.2%}" if classes else "-", f"{classes.majority_accuracy:.2%}" if classes else "-"))
    errors = [f"{one.domain}: mean absolute error {format_errors(one.choices.errors)}" for one in scores
              if one.choices and one.choices.errors]
    parts = ["\n".join([ruled(rows, words=2), *errors])]
    if intervals := format_intervals({one.domain: (one.intervals, one.recordings) for one in scores}):
        parts.append(ruled([("domain", "metric", "95% interval", "recordings"), *intervals], words=2))
    for one in scores:
        if one.choices and one.choices.buttons:
            parts.append(_format_buttons(one.domain, one.choices.buttons))
        if one.free_running:
            parts += _format_free_running(one.domain, one.free_running)
        if one.generated:
            parts.append(format_text_scores(one.domain, one.generated))
            intervals = format_intervals({f"{one.domain}, generated": (one.generated.intervals, one.recordings)})
            if intervals:
                parts.append(ruled([("domain", "metric", "95% interval", "recordings"), *intervals], words=2))
        if one.classes:
            parts.append(_format_classes(one.domain, one.classes))
    return "\n\n".join(parts)


def _format_free_running(domain: str, scores: FreeRunningScores) -> list[str]:
    domain = f"{domain}, free-running"
    line = (f"{domain}: {scores.exact:.2%} of {scores.actions:,} actions exact, BLEU-4 "
            f"{'-' if scores.bleu4 is None else f'{scores.bleu4:.1f}'}")
    if scores.errors:
        line += f", mean absolute error {format_errors(scores.errors)}"
    intervals = format_intervals({domain: (scores.intervals, 0)})
    line += "".join(f"; 95% interval of {name} {interval}" for _, name, interval, _ in intervals)
    return [line, *([_format_buttons(domain, scores.buttons)] if scores.buttons else [])]


def _format_buttons(domain: str, buttons: Sequence[ButtonScore]) -> str:
    rows = [(f"{domain}: button", "precision", "recall", "predicted", "recorded")]
    for one in buttons:
        precision, recall = ("-" if share is None else f"{share:.2%}" for share in (one.precision, one.recall))
        rows.append((one.name, precision, recall, f"{one.predicted:,}", f"{one.recorded:,}"))
    return ruled(rows, words=1)


def _format_classes(domain: str, classes: ClassScores) -> str:
    line = (f"{domain}: accuracy {classes.accuracy:.2%} (majority class {classes.majority_accuracy:.2%}), macro-F1 "
            f"{classes.macro_f1:.3f} (majority class {classes.majority_macro_f1:.3f}), {classes.count:,} clips")
    count = len(classes.confusion)
    if count > _PRINTED_CLASSES:
        return f"{line}; the confusion matrix of {count} classes is in the JSON"
    rows = [("class / predicted", *map(str, range(count)))]
    rows += [(str(label), *(f"{clips:,}" for clips in of_class)) for label, of_class in enumerate(classes.confusion)]
    return f"{line}\n{ruled(rows, words=1)}"
