"""The ActionSpec and StateSpec of a data set, from the config or the data set, with open bounds found in its data.

    config.data.domains.NAME.action_spec, or agent_jax.json --statistics of the train split--> ActionSpec, normalisation

The domain keeps the bounds found, and so does every checkpoint: acting needs neither data nor config.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.actions.declarations import OpenBounds, closed, open_bounds
from agent_jax.config import DomainConfig
from agent_jax.data.store.statistics import QUANTILES, SplitNumbers, Statistics

if TYPE_CHECKING:
    from agent_jax.data.store.store import Store

KINDS: dict[str, type[ActionSpec] | type[StateSpec]] = {"action_spec": ActionSpec, "state_spec": StateSpec}
NARROW = 1e-4  # of the larger bound: closer bounds are too close for float32 and a few hundred bins
MARGIN = 1e-3  # on either side of a constant c: MARGIN * max(1, |c|)


@dataclasses.dataclass(frozen=True)
class DomainSpecs:
    """The specs of a data set."""

    action: ActionSpec
    state: StateSpec | None
    normalisation: Mapping[str, Any]  # how open bounds were found, as JSON; {}: no bounds were open
    numbers: SplitNumbers  # of all their keys, in the train split
    configured: frozenset[str]  # those of "action_spec", "state_spec" that the config has
    rate_hz: float  # recording rate from the metadata; 0: unknown
    defaults: frozenset[str] = frozenset()  # those that `prepare` derived from the data's statistics

    @property
    def specs(self) -> list[ActionSpec | StateSpec]:
        """The ActionSpec and, if there is one, the StateSpec."""
        return [spec for spec in (self.action, self.state) if spec]

    def derived(self, kind: str) -> set[str]:
        """Places of the parts of the `kind` ("action" or "state") spec whose bounds come from the data."""
        if f"{kind}_spec" in self.defaults:
            return {part.place for spec in self.specs if spec.kind == kind for part in spec.parts}
        return {key.partition(" ")[2] for key in self.normalisation.get("parts", {}) if key.startswith(f"{kind} ")}


def find_specs(name: str, config: DomainConfig, store: Store) -> DomainSpecs:
    """The specs of a config entry and its data set; reads the data only for open bounds that are not cached.

    Raises:
        ValueError: a spec is malformed, missing in both, or different in both; a key is not a field of the data set, or
            has another shape; a number of the data is not finite.
    """
    where = f"config.data.domains.{name}"
    stored = {field: store.metadata.get(field) or {} for field in KINDS}
    defaults = default_specs(store.metadata)
    declared = {field: getattr(config, field) or stored[field] for field in KINDS}
    if not declared["action_spec"]:
        raise ValueError(f"{where}.action_spec: empty, and {store.directory} has no ActionSpec; give the one of its "
                         "actions")
    keys: list[str] = []
    for field, content in declared.items():
        if content:
            spec = KINDS[field].from_dict(closed(content, None, f"{where}.{field}"))
            _check_fields(where, spec, store)
            keys += spec.fields
    numbers = SplitNumbers(store, config.train_split, keys)
    specs: dict[str, Any] = {"action_spec": None, "state_spec": None}
    parts: dict[str, Any] = {}
    for field, content in declared.items():
        if content:
            specs[field], found = _closed_spec(field, content, numbers, where)
            parts |= found
        if content and stored[field] and stored[field] != content and field not in defaults:
            other, _ = _closed_spec(field, stored[field], numbers, where)
            if difference := specs[field].difference(other):
                raise ValueError(f"{where}.{field}: differs from that of {store.directory} (there): {difference}; "
                                 "leave it empty to use the data set's")
    configured = frozenset(field for field in KINDS if getattr(config, field))
    rate_hz = float(store.metadata.get("rate_hz") or 0.0)
    return DomainSpecs(specs["action_spec"], specs["state_spec"], _normalisation(config.train_split, parts), numbers,
                       configured, rate_hz, defaults - configured)


def default_specs(metadata: Mapping[str, Any]) -> frozenset[str]:
    """The specs that `prepare` derived from the data's statistics; a config may replace them."""
    prepared = metadata.get("prepared")
    listed = prepared.get("defaults") if isinstance(prepared, Mapping) else None
    return frozenset(KINDS) & frozenset(listed if isinstance(listed, list) else ())


def _check_fields(where: str, spec: ActionSpec | StateSpec, store: Store) -> None:
    """Refuse a spec with a key that is not a step field of the same shape."""
    for key, (shape, _) in spec.fields.items():
        field = store.step_field(key)
        if field.kind != "array" or field.shape != shape:
            found = f"an {field.kind} of shape {field.shape}"
            raise ValueError(f"{where}: {spec.kind} spec {spec.name!r} expects numbers of shape {shape} "
                             f"for {key!r}; found {found} in field {field.path!r} of {store.directory}")


def _closed_spec(field: str, content: Mapping[str, Any], numbers: SplitNumbers,
                 where: str) -> tuple[ActionSpec | StateSpec, dict[str, Any]]:
    """The spec with numbers for its bounds, and {"action action[0]": how they were found} for open ones."""
    kind, place = KINDS[field], f"{where}.{field}"
    names = kind.from_dict(closed(content, None, place))
    found = {part.place: _found_bounds(part, names.named(part.place), numbers.statistics[part.key], place)
             for part in open_bounds(content, place)}
    limits = {name: (record["low"], record["high"]) for name, record in found.items()}
    spec = kind.from_dict(closed(content, limits, place))
    return spec, {f"{kind.kind} {name}": record for name, record in found.items()}


def _found_bounds(part: OpenBounds, name: str, statistics: Statistics, where: str) -> dict[str, Any]:
    """low and high of a part with the statistics they are based on, as JSON."""
    at = {name: float(np.ravel(getattr(statistics, name))[part.index or 0])
          for name in ("min", "max", "mean", "std", "q01", "q99")}
    record: dict[str, Any] = {"method": part.method}
    if part.method == "quantiles":
        record["quantiles"] = list(part.quantiles)
        if not set(part.quantiles) <= set(QUANTILES):
            raise ValueError(f"{where}: the quantiles of {name!r} are {part.quantiles}, expected two of "
                             f"{', '.join(map(str, QUANTILES))}")
        low, high = (float(np.ravel(statistics.quantiles[q])[part.index or 0]) for q in part.quantiles)
    elif part.method == "mean_3std":
        low, high = at["mean"] - 3 * at["std"], at["mean"] + 3 * at["std"]
    else:
        low, high = at["min"], at["max"]
    low, high, widened = not_too_narrow(low, high, at["min"], at["max"])
    if widened:
        logging.getLogger(__name__).warning("%s: the bounds of %r by %s %s; they are [%g, %g]", where, name,
                                            part.method, widened, low, high)
    # Nine digits are exact for float32 and drop the last bits of a mean, which depend on NumPy's summation order.
    low, high = float(f"{low:.9g}"), float(f"{high:.9g}")
    return record | {"low": low, "high": high, "widened": widened, "steps": statistics.count, **at,
                     "data": statistics.data_hash}


def not_too_narrow(low: float, high: float, least: float, most: float) -> tuple[float, float, str]:
    """Bounds wide enough to bin, and a description of the change: widened to all data or by a margin; "" for none.

    Checkpoints store the description and hash it (`_normalisation`), so its wording must not change.
    """

    def narrow(low: float, high: float) -> bool:
        return high - low <= NARROW * max(abs(low), abs(high))

    if not narrow(low, high):
        return low, high, ""
    if not narrow(least, most):
        return least, most, "nearly coincide, so they are the least and greatest value"
    centre = (least + most) / 2
    margin = MARGIN * max(1.0, abs(centre))
    return centre - margin, centre + margin, f"coincide, for it hardly varies; they are {margin:g} to either side"


def _normalisation(split: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint stores: the parts, and a hash of them."""
    if not parts:
        return {}
    canonical = json.dumps([split, parts], sort_keys=True, separators=(",", ":"))
    return {"split": split, "parts": dict(parts), "hash": hashlib.sha256(canonical.encode()).hexdigest()}
