"""The report of a conversion as a table and as JSON; a stacked parameter has one line for all its layers.

    tensor                             parameter                 shape          operation
    encoder.layers.{0..11}.fc1.weight  vision/blocks/mlp/up/...  12 x 768 x ... transpose, stack

Below it are the tensors left out, the fresh parameters and the totals.
"""

from __future__ import annotations

import math
from typing import Any

from agent_jax.convert.huggingface.load_report import Item, LoadReport, TowerReport, grouped
from agent_jax.text_table import aligned

HEADINGS = ("tensor", "parameter", "shape", "operation")


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
