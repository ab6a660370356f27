"""The summary that `check` makes of a data set, as problems, as lines for the terminal and as JSON."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.config import DomainConfig
from agent_jax.data.inspect.histograms import bars, share_of, value_lines
from agent_jax.data.pipeline.domain_specs import DomainSpecs
from agent_jax.data.pipeline.spec_check import clipped_beyond
from agent_jax.data.store.store import Store

_LISTED = 5  # problems or texts of a kind that are listed one by one
_SHORT = 3  # letters and digits; an instruction with fewer is listed as nearly empty
_OUTSIDE = 0.01  # share of values that may be beyond the bounds, as config.data.out_of_bounds


@dataclasses.dataclass
class DataSummary:
    """Counts and values of all splits."""

    records: Counter[str] = dataclasses.field(default_factory=Counter)  # by split
    steps: Counter[str] = dataclasses.field(default_factory=Counter)  # by split
    lengths: Counter[str] = dataclasses.field(default_factory=Counter)  # steps by episode
    instructions: dict[tuple[str, str], None] = dataclasses.field(default_factory=dict)  # (episode, instruction)
    sizes: dict[str, Counter[tuple[int, int]]] = dataclasses.field(default_factory=dict)  # images by camera and size
    rotated: Counter[str] = dataclasses.field(default_factory=Counter)  # images with an EXIF orientation, by camera
    splits_of: dict[bytes, set[str]] = dataclasses.field(default_factory=dict)  # by recording
    values: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)  # by key
    value_counts: Counter[str] = dataclasses.field(default_factory=Counter)  # numbers in `values`, by key
    damage: list[str] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def texts(self) -> Counter[str]:
        """Number of episodes by instruction; read it after the pass."""
        return Counter(text for _, text in self.instructions)


def problems_of(store: Store, domain_specs: DomainSpecs | None, values: Mapping[str, np.ndarray],
                summary: DataSummary) -> list[str]:
    """A message for each problem."""
    problems = summary.damage[:_LISTED]
    if len(summary.damage) > _LISTED:
        problems.append(f"{len(summary.damage) - _LISTED:,} more records are damaged or unusable; --json lists all")
    problems += [f"split {name!r} is empty" for name, count in store.splits.items() if not count]
    empty = sum(count for text, count in summary.texts.items() if not text.strip())
    if empty:
        problems.append(f"{empty:,} episodes have an empty instruction")
    for camera, sizes in summary.sizes.items():
        if len(sizes) > 1:
            counts = (f"{height} x {width} ({count:,})" for (height, width), count in sizes.most_common(_LISTED))
            problems.append(f"images of {camera} differ in size: {', '.join(counts)}; prepare them with "
                            "config.image_size")
    repeated = sorted(name.decode("utf-8", "replace") for name, splits in summary.splits_of.items() if len(splits) > 1)
    if repeated:
        problems.append(f"{len(repeated):,} recordings are in more than one split, as {repeated[0]!r}; expected one "
                        "split each, so that no training data are used for testing")
    for spec in domain_specs.specs if domain_specs else ():
        if isinstance(spec, ActionSpec) and spec.rate_hz and store.metadata.get("rate_hz"):
            rate = float(store.metadata["rate_hz"])
            if abs(spec.rate_hz / rate - 1) > 0.01:
                problems.append(f"action spec {spec.name!r} has rate_hz={spec.rate_hz:g}, the data {rate:g}")
        problems += _out_of_bounds(spec, domain_specs.derived(spec.kind) if domain_specs else set(), values)
    return problems


def _out_of_bounds(spec: ActionSpec | StateSpec, derived: set[str], values: Mapping[str, np.ndarray]) -> Iterator[str]:
    """A message for each dimension with values beyond its declared bounds; `derived` bounds cut off some by design."""
    wider = _dimensions(spec, values, clipped_beyond(spec))
    for (place, numbers, low, high), (*_, least, most) in zip(_dimensions(spec, values), wider, strict=True):
        outside = share_of(numbers, least, most)[0]
        if outside > _OUTSIDE and place not in derived:
            yield (f"{spec.named(place)}: {outside:.1%} of the values lie beyond {low:g} to {high:g}, the bounds of "
                   f"its {spec.kind} spec; found {numbers.min():g} to {numbers.max():g}. Correct bounds or units")


def _dimensions(spec: ActionSpec | StateSpec, values: Mapping[str, np.ndarray],
                bounds: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
                ) -> Iterator[tuple[str, np.ndarray, float, float]]:
    """Place, finite values and bounds of each dimension of a spec; `bounds` replaces the spec's."""
    for key in spec.fields:
        if key in values:
            low, high = (np.ravel(bound) for bound in (bounds[key] if bounds else spec.bounds(key)))
            for d, (place, column) in enumerate(_columns(key, values[key])):
                yield place, column, low[d], high[d]


def _all_dimensions(specs: Sequence[ActionSpec | StateSpec],
                    values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray, float | None, float | None]]:
    """The dimensions of the specs; without specs those of all keys, which have no bounds."""
    for spec in specs:
        yield from _dimensions(spec, values)
    if not specs:
        for key, of_key in values.items():
            for place, column in _columns(key, of_key):
                yield place, column, None, None


def _columns(key: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Place and finite values of each component of a key."""
    for d, column in enumerate(values.reshape(len(values), -1).astype(np.float64).T):
        yield f"{key}[{d}]" if values.ndim > 1 else key, column[np.isfinite(column)]


def _similar(texts: Counter[str]) -> list[list[str]]:
    """Groups of instructions that differ only in case, spaces and punctuation."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        plain = "".join(c for c in text.lower() if c.isalnum() or c.isspace())
        groups.setdefault(" ".join(plain.split()), []).append(text)
    return [group for group in groups.values() if len(group) > 1]


def lines_of(store: Store, config: DomainConfig, specs: Sequence[ActionSpec | StateSpec],
             values: Mapping[str, np.ndarray], summary: DataSummary) -> list[str]:
    """The description of the data set for the terminal."""
    size = sum(file.stat().st_size for name, count in store.splits.items() if count for file in store.files(name))
    episodes = Counter(name.partition("/")[0] for name in summary.lengths)
    lines = [f"{store.name}: {store.directory}, {size / 1e6:,.1f} MB"]
    lines += [f"  {name:<8} {summary.records[name]:>9,} records {episodes[name]:>9,} episodes "
              f"{summary.steps[name]:>11,} steps" for name in store.splits]
    for camera, sizes in summary.sizes.items():
        (height, width), _ = sizes.most_common(1)[0]
        lines.append(f"  {camera}: {sum(sizes.values()):,} images of {height} x {width}")
        if summary.rotated[camera]:
            lines.append(f"    {summary.rotated[camera]:,} of them are rotated or mirrored by their EXIF orientation, "
                         "which other readers may ignore; `prepare` stores them upright")
    lengths = np.asarray(list(summary.lengths.values()))
    if len(lengths):
        lines += ["", f"steps of an episode: {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}",
                  *(f"  {line}" for line in bars(lengths, int(lengths.min()), int(lengths.max())))]
    rate = store.metadata.get("rate_hz")
    for spec in specs:
        words = [spec.frame, *([f"{spec.rate_hz:g} Hz", "absolute" if spec.absolute else "relative"]
                               if isinstance(spec, ActionSpec) else [])]
        lines += ["", f"{spec.kind} spec {spec.name!r}: {', '.join(word for word in words if word)}"]
        lines += value_lines([(spec.named(place), numbers, low, high)
                              for place, numbers, low, high in _dimensions(spec, values)],
                             {spec.named(place): unit for place, unit in spec.units.items()})
    if not specs:
        lines += ["", f"{_reason_without_specs(store, config)}; numbers found:"]
        lines += value_lines(list(_all_dimensions(specs, values)), {})
    lines += ["", f"rate: {rate:g} Hz" if rate else "rate: unknown",
              f"instructions ({config.instruction}): {len(summary.texts):,} distinct in "
              f"{sum(summary.texts.values()):,} episodes"]
    lines += [f"  {count:>6,}  {text!r}" for text, count in summary.texts.most_common(_LISTED)]
    short = [text for text in summary.texts if 0 < sum(c.isalnum() for c in text) < _SHORT]
    lines += [f"  nearly empty: {text!r}, {summary.texts[text]:,} episodes" for text in short[:_LISTED]]
    lines += [f"  equal except for case or punctuation: {', '.join(map(repr, group[:3]))}"
              for group in _similar(summary.texts)[:_LISTED]]
    return lines


def _reason_without_specs(store: Store, config: DomainConfig) -> str:
    """Why no number is compared with a spec."""
    if config.layout != "actions":
        return f"layout {config.layout!r}: no actions are predicted"
    if config.action_spec or store.metadata.get("action_spec"):
        return "the specs cannot be used"
    return "no ActionSpec: give one by --config, or prepare the data with one"


def figures_of(store: Store, specs: Sequence[ActionSpec | StateSpec], values: Mapping[str, np.ndarray],
               summary: DataSummary, problems: Sequence[str]) -> dict[str, Any]:
    """Summary and problems as JSON."""
    lengths = list(summary.lengths.values())
    numbers = {}
    for place, column, low, high in _all_dimensions(specs, values):
        numbers[place] = {"min": float(column.min()), "max": float(column.max())} if len(column) else {}
        if low is not None and high is not None and len(column):
            outside, at_bound = share_of(column, low, high)
            numbers[place] |= {"low": float(low), "high": float(high), "outside": outside, "at_bound": at_bound}
    return {"name": store.name, "directory": str(store.directory),
            "splits": {name: {"records": summary.records[name], "steps": summary.steps[name]} for name in store.splits},
            "episodes": len(lengths), "steps_of_an_episode": {"min": min(lengths, default=0),
                                                              "max": max(lengths, default=0)},
            "images": {camera: {f"{height}x{width}": count for (height, width), count in sizes.items()}
                       for camera, sizes in summary.sizes.items()},
            "turned_images": {camera: count for camera, count in summary.rotated.items() if count},
            "numbers": numbers, "instructions": len(summary.texts), "similar_instructions": _similar(summary.texts),
            "damaged": summary.damage, "problems": list(problems)}
