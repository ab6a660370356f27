"""What a run says about itself: one JSON line a logged step, the same as TensorBoard events, and a progress line.

    {"step": 200, "split": "train", "time": 1700000000.0, "loss": 2.1,
     "losses": {"language": 1.3, "action": 0.9, "mae": 0.4, "language_accuracy": 0.6, "action_accuracy": 0.7},
     "domains": {"babyai": {... the same five}}, "gradient_norm": 1.9, "learning_rate": 0.0001,
     "rates": {"steps_per_second": 5.3, "frames_per_second": 339.2, "slots_per_second": 4410.0, "data_wait": 0.02,
               "eta_seconds": 620.0}}

What the agent did in the simulator has lines of its own, one an evaluation:

    {"step": 800, "split": "closed_loop", "time": 1700000000.0,
     "success": {"GoToLocal": {"greedy": {"success": 0.9, "episodes": 200, "ci95": [0.85, 0.93], "mean_steps": 8.8,
                                          "lost": []}}}}

A run with several simulators has them by domain: "success": {"babyai": {"GoToLocal": {...}}, "metaworld": {...}}.

Where an episode is a chain of instructions (CALVIN), the figures hold `chain` as well: for 1, 2, ... of them the
share of episodes in which so many were carried out, and the mean (`evaluate/statistics.py`).

`action_accuracy` is of the choices: ids that an ActionSpec's automaton forces, as most delimiters are, do not count.

The keys are frozen: other programs read metrics.jsonl. A model with a class head adds `label` (nats) and
`label_accuracy` to each group of losses. What does not apply (a domain without targets of a kind, the
rates of a validation) or is not finite is null, since JSON has no NaN.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.evaluate.in_training import by_task
from agent_jax.json_files import parse_json
from agent_jax.models.losses import LossSums
from agent_jax.train.appended_file import AppendedFile
from agent_jax.train.tensorboard_events import TensorBoardEvents
from agent_jax.train.wandb_run import WandbRun

METRICS_FILE = "metrics.jsonl"
LOSSES = ("language", "action", "mae", "language_accuracy", "action_accuracy")  # nats, nats, squared error, shares
LABEL_LOSSES = ("label", "label_accuracy")  # nats, share
# Of LossSums; the others have the name itself.
_FIELDS = {"language_accuracy": "language_correct", "action_accuracy": "action_correct",
           "label_accuracy": "label_correct"}


@dataclasses.dataclass(frozen=True)
class Rates:
    """Speed since the last log line."""

    steps_per_second: float
    frames_per_second: float
    slots_per_second: float
    data_wait: float  # share of the time spent waiting for the next batch, 0 to 1
    eta_seconds: float  # until the last step of the run, at this speed


@dataclasses.dataclass(frozen=True)
class Record:
    """One line of metrics.jsonl."""

    step: int  # updates done; of a validation: of the parameters it looked at
    split: str  # "train" or "validation"
    time: float  # seconds since the epoch
    loss: float
    losses: dict[str, float]  # by name in LOSSES, over all domains
    domains: dict[str, dict[str, float]]  # the same by domain
    gradient_norm: float = math.nan
    learning_rate: float = math.nan
    rates: Rates | None = None

    def to_json(self) -> str:
        """The line, without its end."""
        return json.dumps(_finite(dataclasses.asdict(self)), allow_nan=False)


@dataclasses.dataclass(frozen=True)
class SuccessRecord:
    """One evaluation in a simulator."""

    step: int  # updates done of the parameters that acted
    time: float  # seconds since the epoch
    # task -> policy -> figures; of several simulators, domain -> task -> policy -> figures
    success: Mapping[str, Mapping[str, Mapping[str, Any]]]
    split: str = "closed_loop"

    def to_json(self) -> str:
        """The line, without its end."""
        return json.dumps(_finite(dataclasses.asdict(self)), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean_losses(
    sums: LossSums, weights: LossSums, domains: Sequence[str], *, classes: bool = False
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Losses and accuracies over all domains, and by domain; NaN where a domain has no targets of the kind.

    Args:
        sums: of a step, or added up over validation batches; on the host.
        weights: of the same rows.
        domains: names, in the order of the indices in the batch.
        classes: whether the model has a class head, whose loss is then among them.
    """

    def ratio(total: Any, weight: Any) -> float:
        return float(total / weight) if weight > 0 else math.nan

    pairs = {name: (np.asarray(getattr(sums, _FIELDS.get(name, name)), np.float64),
                    np.asarray(getattr(weights, _FIELDS.get(name, name)), np.float64))
             for name in (*LOSSES, *(LABEL_LOSSES if classes else ()))}
    over_all = {name: ratio(total_D.sum(), weight_D.sum()) for name, (total_D, weight_D) in pairs.items()}
    by_domain = {domain: {name: ratio(total_D[i], weight_D[i]) for name, (total_D, weight_D) in pairs.items()}
                 for i, domain in enumerate(domains)}
    return over_all, by_domain


def rates(*, steps: int, frames: float, slots: float, seconds: float, waited: float, left: int) -> Rates:
    """The speed of an interval.

    Args:
        steps: done in it.
        frames: images of those steps, less padding.
        slots: of those steps, less padding.
        seconds: length of the interval.
        waited: seconds of it spent waiting for batches.
        left: steps until the end of the run.
    """
    seconds = max(seconds, 1e-9)
    return Rates(steps / seconds, frames / seconds, slots / seconds, min(1.0, waited / seconds),
                 left * seconds / steps if steps else math.nan)


def duration(seconds: float) -> str:
    """Seconds as 4:05 or 3:04:05, `?` if not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_line(record: Record, steps: int) -> str:
    """One line for a person: step, losses, action accuracy, speed, share of waiting for data, time left."""
    eta = [f"ETA {duration(record.rates.eta_seconds)}"] if record.rates is not None else []
    return "  ".join([f"{record.split} {record.step:,}/{steps:,}", *shown_figures(record), *eta])


def shown_figures(record: Record) -> list[str]:
    """Losses, accuracies and speed of a record in short texts."""
    losses = [f"{name} {record.losses[name]:.3f}" for name in ("language", "action", "mae")
              if math.isfinite(record.losses[name])]
    parts = [f"loss {record.loss:.3f}", *losses]
    if math.isfinite(record.losses["action_accuracy"]):
        parts.append(f"action accuracy {record.losses['action_accuracy']:.1%}")
    if math.isfinite(record.losses.get("label_accuracy", math.nan)):
        parts.append(f"label {record.losses['label']:.3f}  label accuracy {record.losses['label_accuracy']:.1%}")
    if record.rates is not None:
        parts += [f"{record.rates.frames_per_second:,.0f} frames/s", f"data wait {record.rates.data_wait:.0%}"]
    return parts


def success_line(record: SuccessRecord, steps: int) -> str:
    """One line for a person: each task's success with its 95% interval, by policy if there are several."""
    parts = []
    for domain, task, policies in by_task(record.success):
        for name, figures in policies.items():
            low, high = figures["ci95"]
            who = f" {name}" if len(policies) > 1 else ""
            length = f", mean length {figures['chain']['mean_length']:.2f}" if "chain" in figures else ""
            parts.append(f"{domain} {task}{who} {figures['success']:.1%} [{low:.1%}, {high:.1%}] of "
                         f"{figures['episodes']}{length}".lstrip())
    return "  ".join([f"{record.split} {record.step:,}/{steps:,}", *parts])


class MetricsLog:
    """metrics.jsonl and TensorBoard events of a workdir, appended to by one process.

    A run that was killed had logged steps after its last checkpoint; resumed, it does them again. So lines after
    `step`, and a last line cut short, are dropped when the log is opened, and TensorBoard is told to do the same. On a
    full disk lines are lost, none is torn, and the run goes on.
    """

    def __init__(self, workdir: str | Path, step: int, *, evaluated_again: bool = False, silent: bool = False,
                 wandb: WandbRun | None = None) -> None:
        """Open the log of a run that continues after `step`, 0 for a new one.

        Args:
            workdir: of the run.
            step: the last one that was taken.
            evaluated_again: whether the run was over and is evaluated anew: only the lines of training stay, of `step`.
            silent: write nothing at all.
            wandb: gets the same scalars as TensorBoard; the caller closes it.

        Raises:
            OSError: if a file cannot be made or rewritten.
            ValueError: if metrics.jsonl holds anything else than such lines.
        """
        self._silent, self._wandb = silent, wandb
        if silent:
            return
        self.path = Path(workdir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_after(self.path, step, evaluated_again=evaluated_again)
        self._lines = AppendedFile(self.path)
        self._events = TensorBoardEvents(self.path.parent / "tensorboard", step + 1)

    def write(self, record: Record | SuccessRecord) -> None:
        """Append a record; its line is in the file when this returns, or lost, which is logged."""
        if self._silent:
            return
        self._lines.append(record.to_json().encode() + b"\n")
        scalars = {f"{record.split}/{tag}": value for tag, value in _scalars(dataclasses.asdict(record)).items()}
        self._events.write(scalars, record.step, record.time)
        if self._wandb:
            self._wandb.write(scalars, record.step)

    def close(self) -> None:
        """Finish both files."""
        if self._silent:
            return
        self._lines.close()
        self._events.close()


def _scalars(fields: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a record by slash-joined name, less step and time."""
    found: dict[str, float] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            found |= _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, float) and math.isfinite(value) and name != "time":
            found[prefix + name] = value
    return found


def _drop_after(path: Path, step: int, *, evaluated_again: bool) -> None:
    """Rewrite metrics.jsonl without the lines that are written again and without a torn last line."""
    if not path.exists():
        return
    content = path.read_bytes()
    lines = content.split(b"\n")
    kept = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end is empty or torn
        try:
            record = parse_json(line, f"{path}:{number}")
        except ValueError:
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int or "split" not in record:
            raise ValueError(f"{path}:{number}: found {line[:80]!r}, expected a JSON object with step and split; "
                             "move the file away or choose another workdir")
        trained = record["split"] == "train"
        if record["step"] < step or (record["step"] == step and (trained or not evaluated_again)):
            kept.append(line + b"\n")
    if b"".join(kept) == content:
        return
    temporary = path.with_suffix(".jsonl.tmp")
    try:
        temporary.write_bytes(b"".join(kept))
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} cannot be rewritten without the lines after step {step}, and was left as it is: "
                      f"{error.strerror or error}; make room or let this user write there") from error
    finally:
        temporary.unlink(missing_ok=True)
