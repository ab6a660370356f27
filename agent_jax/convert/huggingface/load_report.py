"""The report of a conversion: which tensor of the files fills which parameter."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping

Shape = tuple[int, ...]


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
