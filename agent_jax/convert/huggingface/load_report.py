"""The report of a conversion: which tensor of the files fills which parameter.

    tensor                             parameter                 shape          operation
    encoder.layers.{0..11}.fc1.weight  vision/blocks/mlp/up/...  12 x 768 x ... transpose, stack

A stacked parameter has one line for all its layers. Below the table are the tensors left out, the fresh parameters and
the totals.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from agent_jax.text_table import aligned

Shape = tuple[int, ...]
HEADINGS = ("tensor", "parameter", "shape", "operation")


@dataclasses.dataclass(frozen=True)
class Ported:
    """One of our leaves, filled from the files."""

    shape: Shape
    tensors: tuple[str, ...]  # as they are named in the files
    sources: tuple[str, ...]  # the same, shortened: the layers of a stacked leaf as {0..11}
    operation: str  # how they change


@dataclasses.dataclass(frozen=True)
class Item:
    """A tensor or leaf that was not ported, and why."""

    shape: Shape
    reason: str


@dataclasses.dataclass(frozen=True)
class TowerReport:
    """One folder's tensors and one part's parameters. `str()` prints it."""

    part: str  # vision or language
    directory: str
    source: str  # its files that were read
    ported: Mapping[str, Ported]  # by our path, from the root of the parameters
    fresh: Mapping[str, Item]  # leaves, or rows of a leaf, that the files do not have
    left_out: Mapping[str, Item]  # tensors, or rows of a tensor, that the model does not have

    def __str__(self) -> str:
        return "\n".join([self.title, *grouped("fresh", self.fresh), *grouped("left out", self.left_out)])

    @property
    def title(self) -> str:
        """One line: the number of tensors, leaves and values."""
        tensors = sum(len(leaf.tensors) for leaf in self.ported.values())
        return (f"{self.part}: {tensors} tensors of {self.directory} fill {len(self.ported)} leaves, "
                f"{self.values:,} values ({self.source})")

    @property
    def values(self) -> int:
        """Values that come from the files."""
        values = sum(math.prod(leaf.shape) for leaf in self.ported.values())
        return values - sum(math.prod(item.shape) for path, item in self.fresh.items() if "[" in path)  # rows of a leaf


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """All folders, and the parameters that none of them fills. `str()` prints it."""

    towers: tuple[TowerReport, ...]
    fresh: Mapping[str, Item]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.towers), *grouped("fresh", self.fresh)])


def grouped(title: str, items: Mapping[str, Item]) -> list[str]:
    """One line for each reason, with up to three names and the number of values."""
    by_reason: dict[str, dict[str, Item]] = collections.defaultdict(dict)
    for name, item in items.items():
        by_reason[item.reason][name] = item
    lines = []
    for reason, group in by_reason.items():
        names = list(group)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        values = sum(math.prod(item.shape) for item in group.values())
        lines.append(f"  {title}: {shown} ({values:,} values): {reason}")
    return lines


def mapping_table(report: LoadReport) -> str:
    """The table, the items left out, the fresh ones, and the totals."""
    lines = []
    for tower in report.towers:
        lines += [tower.title, *(f"  {line}" for line in aligned([HEADINGS, *_rows(tower)], words=len(HEADINGS))),
                  *grouped("left out", tower.left_out), *grouped("fresh", tower.fresh), ""]
    lines += grouped("fresh", report.fresh)
    totals = _totals(report)
    lines.append(f"total: {totals['from_files']:,} values from {totals['tensors']:,} tensors, {totals['fresh']:,} "
                 f"fresh, {totals['parameters']:,} parameters; {totals['left_out']:,} values left out")
    return "\n".join(lines)


def to_json(report: LoadReport) -> dict[str, Any]:
    """The same for JSON, with the name of every tensor."""
    return {
        "parts": [{
            "part": tower.part, "directory": tower.directory, "source": tower.source,
            "mapping": [{"parameter": path, "shape": list(leaf.shape), "tensors": list(leaf.tensors),
                         "sources": list(leaf.sources), "operation": leaf.operation}
                        for path, leaf in tower.ported.items()],
            "left_out": _items(tower.left_out), "fresh": _items(tower.fresh)} for tower in report.towers],
        "fresh": _items(report.fresh),
        "totals": _totals(report),
    }


def _rows(tower: TowerReport) -> list[tuple[str, str, str, str]]:
    rows = []
    for path, leaf in tower.ported.items():
        first, *others = leaf.sources
        rows.append((first, path, " x ".join(map(str, leaf.shape)) or "one value", leaf.operation))
        rows += [(other, "", "", "") for other in others]
    return rows


def _items(items: Any) -> list[dict[str, Any]]:
    return [{"name": name, "shape": list(item.shape), "reason": item.reason} for name, item in items.items()]


def _totals(report: LoadReport) -> dict[str, int]:
    def values(items: list[Item]) -> int:
        return sum(math.prod(item.shape) for item in items)

    towers = report.towers
    from_files = sum(tower.values for tower in towers)
    fresh = values([*report.fresh.values(), *(item for tower in towers for item in tower.fresh.values())])
    return {"tensors": sum(len(leaf.tensors) for tower in towers for leaf in tower.ported.values()),
            "from_files": from_files, "fresh": fresh, "parameters": from_files + fresh,
            "left_out": values([item for tower in towers for item in tower.left_out.values()])}
