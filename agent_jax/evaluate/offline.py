"""Metrics of an agent on recorded data, by domain, without a simulator.

    action accuracy   share of choices whose best legal id is the recorded one; ids forced by the automaton, such as
    most
                      delimiters, are not counted (action_accuracy.py)
    exact             share of actions with all choices correct
    error             of each binned number, between the decoded values of the best and the recorded id
    language accuracy share of targets whose best id in the whole vocabulary is the recorded one
    perplexity        exp of the mean negative log-likelihood of a target; of actions with delimiters
    BLEU-4            of the best ids of a window's actions in the whole vocabulary, with delimiters, against the
                      recorded ones (Papineni et al. 2002, by sacrebleu, over the split); as in the paper's tables
    class accuracy    of labelled clips, next to that of always predicting the training split's most frequent class

All are teacher-forced: the ids before each target are the recorded ones.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.actions.codec import BoundSpec
from agent_jax.batch import Batch
from agent_jax.config import ModelConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.loader import PackedRows, validation_batches
from agent_jax.evaluate.action_accuracy import ActionAccuracy, ActionScores, format_errors
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.models.agent import Agent, Params
from agent_jax.models.choice_table import ChoiceTable
from agent_jax.models.losses import token_nll
from agent_jax.runtime.compiler_options import compiler_options
from agent_jax.text_table import ruled

BATCH_SIZE = 16  # rows


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


@dataclasses.dataclass(frozen=True)
class ForwardOutput:
    """Predictions for a batch of rows, on the host."""

    nll_BT: np.ndarray
    best_BT: np.ndarray  # best ids
    chosen_BT: np.ndarray  # best legal ids at the choices; undefined elsewhere
    class_B: np.ndarray | None  # best class of each row


def evaluate_offline(trained: TrainedRun, params: Params, domain: Domain, *, data: str = "", split: str = "",
                     rows_limit: int = 0) -> DomainScores:
    """Score a domain of a checkpoint on a split of its data.

    Args:
        trained: the checkpoint.
        params: its parameters.
        domain: one of its domains.
        data: directory of the data set; "": the run's own.
        split: of the data set; "": the run's validation split.
        rows_limit: maximum number of rows, drawn with the run's seed; 0: all.

    Raises:
        FileNotFoundError, ValueError: no data set there, or one that does not fit the domain.
    """
    store, split = trained.open_store(domain, data), trained.split(domain, split)
    rows = trained.rows(domain, store, split)
    sums = _ScoreSums(domain.spec)
    choices = ChoiceTable.of({domain.index: domain.spec})
    for batch, output in forwards(trained.config.model, params, rows, rows_limit, choices):
        sums.add(batch, output)
    classes = None
    if domain.layout == "label":
        entry = trained.config.data.domains.get(domain.name)
        training = entry.train_split if entry else "train"
        labels = trained.rows(domain, store, training if training in store.splits else split).windows[0].labels
        classes = sums.classes(np.asarray(labels))
    return DomainScores(domain.name, split, sums.windows, sums.tokens("action"), sums.bleu4(), sums.tokens("language"),
                  classes, sums.choices())


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
            batch, output = _first_rows((batch, output), rows_limit - number * BATCH_SIZE)
        yield batch, ForwardOutput(*output)


def _first_rows(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda array_B: array_B[:count], tree)


class _ScoreSums:
    """Sums over the batches of a domain."""

    def __init__(self, spec: BoundSpec | None) -> None:
        self._spec, self._actions = spec, ActionScores(spec) if spec else None
        self._sums = {kind: np.zeros(4) for kind in ("action", "language")}  # nll, correct, weight, targets
        self._predicted: list[str] = []  # ids of each window's actions
        self._recorded: list[str] = []
        self._class_correct: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self.windows = 0

    def add(self, batch: Batch, output: ForwardOutput) -> None:
        """Count a batch."""
        best_BT, target_BT = output.best_BT, np.asarray(batch.target_BT)
        segment_BT = np.take_along_axis(np.asarray(batch.segment_BS), np.asarray(batch.slot_BT), axis=1)
        for kind, sums in self._sums.items():
            weight_BT = np.asarray(getattr(batch, f"{kind}_weight_BT"), np.float64)
            correct_BT = best_BT == target_BT
            sums += [(output.nll_BT * weight_BT).sum(), (correct_BT * weight_BT).sum(), weight_BT.sum(),
                     (weight_BT > 0).sum()]
        for row, weight_T in enumerate(np.asarray(batch.action_weight_BT)):
            self.windows += int(np.max(np.asarray(batch.segment_BS)[row]))
            for segment in np.unique(segment_BT[row][weight_T > 0]).tolist():
                positions = np.flatnonzero((weight_T > 0) & (segment_BT[row] == segment))
                self._predicted.append(_words(best_BT[row][positions]))
                self._recorded.append(_words(target_BT[row][positions]))
                self._add_actions(target_BT[row][positions], output.chosen_BT[row][positions], weight_T[positions])
        if output.class_B is not None:
            label_B = np.asarray(batch.label_B)
            self._class_correct.append((output.class_B == label_B)[label_B >= 0])
            self._labels.append(label_B[label_B >= 0])

    def _add_actions(self, ids: np.ndarray, chosen: np.ndarray, weight: np.ndarray) -> None:
        """Count the actions of a window, given as concatenated ids."""
        if self._actions is None or self._spec is None:
            return
        automaton = self._spec.automaton
        firsts = np.flatnonzero(np.asarray(automaton.states(ids)) == automaton.start)
        for first, stop in zip(firsts, [*firsts[1:], len(ids)], strict=True):
            choice = self._spec.choices(ids[first:stop]) >= 0
            self._actions.add(ids[first:stop], chosen[first:stop][choice], float(weight[first]))

    def tokens(self, kind: str) -> TokenScores | None:
        """Metrics of the targets of a kind; the accuracy of actions is that of their choices."""
        nll, correct, weight, count = self._sums[kind]
        if not weight:
            return None
        choices = self.choices() if kind == "action" else None
        return TokenScores(int(count), choices.accuracy if choices else correct / weight, math.exp(nll / weight))

    def choices(self) -> ActionAccuracy | None:
        """Accuracy of the actions."""
        return self._actions.result() if self._actions else None

    def bleu4(self) -> float | None:
        """BLEU-4 of the actions."""
        if not self._predicted or importlib.util.find_spec("sacrebleu") is None:
            return None
        from sacrebleu.metrics.bleu import BLEU

        # The texts are tokenized. Short windows have no four words in a row; sacrebleu's smoothing (exp) handles them.
        return float(BLEU(tokenize="none", force=True).corpus_score(self._predicted, [self._recorded]).score)

    def classes(self, training_labels: np.ndarray) -> ClassScores | None:
        """Metrics of the labelled rows."""
        if not self._class_correct:
            return None
        correct, labels = np.concatenate(self._class_correct), np.concatenate(self._labels)
        majority = int(np.argmax(np.bincount(training_labels[training_labels >= 0])))
        return ClassScores(len(correct), float(correct.mean()), float((labels == majority).mean()))


def _words(ids: np.ndarray) -> str:
    """Ids as words for BLEU, since the text of a token may contain a space."""
    return " ".join(map(str, ids.tolist()))


def format_scores(scores: Sequence[DomainScores]) -> str:
    """The scores as aligned text, a line a domain; `-` for metrics without targets."""
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
    return "\n".join([ruled(rows, words=2), *errors])
