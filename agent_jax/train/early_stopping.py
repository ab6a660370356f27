"""The best validation of a run so far, and when a run that no longer improves ends.

A checkpoint holds it under the key `best` of its meta dict, so that a resumed run ends at the same step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agent_jax.checkpoints.retention import metric_key, sign
from agent_jax.config import Config
from agent_jax.train.metrics import Record


class MetricError(ValueError):
    """The validation has no value of `config.checkpoint.best_metric`."""


class EarlyStopping:
    """Counts the validations since the best one."""

    def __init__(self, config: Config, meta: Mapping[str, Any] | None = None) -> None:
        """Start counting, or go on from a checkpoint.

        Args:
            config: with `train.patience` and `checkpoint.best_metric`.
            meta: of the checkpoint that the run is resumed from; a best step by another metric does not count.
        """
        self._metric, self._patience = config.checkpoint.best_metric, config.train.patience
        found = (meta or {}).get("best") or {}
        same = self._patience > 0 and found.get("metric") == self._metric
        self.step: int | None = found["step"] if same else None  # of the best validation
        self.value: float = found["value"] if same else math.nan
        self._since: int = found["since"] if same else 0  # validations after the best one

    @property
    def ended(self) -> bool:
        """Whether the last `config.train.patience` validations brought no better value."""
        return 0 < self._patience <= self._since

    def after(self, validation: Record) -> bool:
        """Count a validation; returns whether it is the best one so far.

        Raises:
            MetricError: it has no value of the metric.
        """
        if not self._patience:
            return False
        value = metric_value(validation, self._metric)
        if not math.isfinite(value):
            known = [name for name, found in _values(validation).items() if math.isfinite(found)]
            raise MetricError(f"config.checkpoint.best_metric={self._metric!r}: the validation after step "
                              f"{validation.step} has no value of it; expected one of {', '.join(known)}")
        if self.step is None or sign(self._metric) * value < sign(self._metric) * self.value:
            self.step, self.value, self._since = validation.step, value, 0
            return True
        self._since += 1
        return False

    def to_meta(self) -> dict[str, Any]:
        """For the meta dict of a checkpoint; empty in a run without patience."""
        if self.step is None:
            return {}
        return {"best": {"metric": self._metric, "step": self.step, "value": self.value, "since": self._since}}

    def __str__(self) -> str:
        return (f"{metric_key(self._metric)} has not improved in {self._since} validations; the best was "
                f"{self.value:.5g} at step {self.step}")


def metric_value(validation: Record, metric: str) -> float:
    """The value of a metric in a validation, NaN if it has none: "loss", a name of `metrics.LOSSES`, or DOMAIN/NAME."""
    return _values(validation).get(metric, math.nan)


def _values(validation: Record) -> dict[str, float]:
    by_domain = {f"{domain}/{name}": value for domain, losses in validation.domains.items()
                 for name, value in losses.items()}
    return {"loss": validation.loss, **validation.losses, **by_domain}


def checkpoint_metrics(validation: Record | None, metric: str) -> dict[str, float] | None:
    """The metrics that a checkpoint is saved with: the loss, and the one by which steps are kept, if it has a value."""
    if validation is None:
        return None
    value = metric_value(validation, metric)
    return {metric_key("loss"): validation.loss, **({metric_key(metric): value} if math.isfinite(value) else {})}
