"""The account of a conversion: where each tensor of the files went, and where each parameter came from."""

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
    sources: tuple[str, ...]  # the same in short: the layers of a stacked leaf as {0..11}
    operation: str  # what becomes of them on the way


@dataclasses.dataclass(frozen=True)
class Item:
    """Something that was not ported, and why."""

    shape: Shape
    reason: str


@dataclasses.dataclass(frozen=True)
class TowerReport:
    """One folder's tensors and one part's parameters. `str()` prints it."""

    part: str  # vision or language
    directory: str
    source: str  # which of its files
    ported: Mapping[str, Ported]  # by our path, from the root of the parameters
    fresh: Mapping[str, Item]  # leaves, or rows of one, that the files do not have
    left_out: Mapping[str, Item]  # tensors, or rows of one, that the model does not have

    def __str__(self) -> str:
        return "\n".join([self.title, *grouped("fresh", self.fresh), *grouped("left out", self.left_out)])

    @property
    def title(self) -> str:
        """One line: how much of which files goes where."""
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
    """All folders, and the parameters that came from none. `str()` prints it."""

    accounts: tuple[TowerReport, ...]
    fresh: Mapping[str, Item]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.accounts), *grouped("fresh", self.fresh)])


def grouped(title: str, items: Mapping[str, Item]) -> list[str]:
    """One line a reason: names, up to three of them, and the number of values."""
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
