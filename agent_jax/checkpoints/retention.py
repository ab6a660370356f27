"""Which steps stay on disk: the newest, the best, and whatever was damaged, under another name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils


def metric_key(name: str) -> str:
    """The key in a checkpoint's `metrics` of a metric of the validation (`config.checkpoint.best_metric`)."""
    return f"validation/{name}"


def sign(metric: str) -> int:
    """1 for a metric of which lower is better; -1 for an accuracy."""
    return -1 if metric.endswith("accuracy") else 1


def rank(metas: Iterable[Mapping[str, Any]], metric: str) -> list[int]:
    """The steps of these meta dicts that have a finite value of the metric, the best value first."""
    values = {meta["step"]: (meta["metrics"] or {}).get(metric, math.nan) for meta in metas}
    finite = (step for step, value in values.items() if math.isfinite(value))
    return sorted(finite, key=lambda step: sign(metric) * values[step])


class Retention:
    """Orbax's PreservationPolicy protocol: keep the newest steps and those of the best metric.

    Orbax's own `BestN` needs the metrics in files of Orbax, and Orbax cannot open a directory in which one of those is
    unreadable. Ours are in the meta dict, which is checked.
    """

    def __init__(self, metas: Iterable[Mapping[str, Any]], *, keep_latest: int, keep_best: int, metric: str):
        self._metas: dict[int, Mapping[str, Any]] = {}  # their step and metrics alone: all of a meta dict is megabytes
        for meta in metas:
            self.note(meta)
        self._keep_latest, self._keep_best, self._metric = keep_latest, keep_best, metric

    def note(self, meta: Mapping[str, Any]) -> None:
        """Count in a step that is being saved."""
        self._metas[meta["step"]] = {name: meta[name] for name in ("step", "metrics")}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each checkpoint, told by its `step`, is to be kept."""
        del context
        present = sorted(checkpoint.step for checkpoint in checkpoints)
        best = rank((self._metas[step] for step in present if step in self._metas), self._metric)
        kept = {*present[-self._keep_latest :], *best[: self._keep_best]}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def set_aside(directory: epath.Path, damaged: Sequence[int]) -> None:
    """Rename damaged steps to `<step>.damaged`: Orbax and `steps` pass over that. All processes call it together."""
    if jax.process_index() == 0:
        for step in damaged:
            place, count = directory / f"{step}.damaged", 1
            while place.exists():
                count += 1
                place = directory / f"{step}.damaged-{count}"
            (directory / str(step)).rename(place)
            logging.warning("Set aside the damaged checkpoint as %s", place)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("agent_jax.checkpoints.retention.set_aside")
