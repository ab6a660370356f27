"""The account of a conversion as a table, for people and as JSON; a stacked parameter has one line for all its layers.

    tensor                             parameter                 shape          operation
    encoder.layers.{0..11}.fc1.weight  vision/blocks/mlp/up/...  12 x 768 x ... transpose, stack

Below it stand what is left out, what is fresh, and the totals.
"""

from __future__ import annotations

import math
from typing import Any

from agent_jax.convert.huggingface.load_report import Item, LoadReport, Shape, TowerReport, grouped
from agent_jax.text_table import aligned

HEADINGS = ("tensor", "parameter", "shape", "operation")


def mapping_table(report: LoadReport) -> str:
    """Every parameter with the tensors that fill it, one line for all layers; what is left out and fresh; totals."""
    lines = []
    for account in report.accounts:
        lines += [account.title, *_columns(_rows(account)), *grouped("left out", account.left_out),
                  *grouped("fresh", account.fresh), ""]
    lines += [*grouped("fresh", report.fresh)]
    totals = _totals(report)
    lines.append(f"total: {totals['from_files']:,} values from {totals['tensors']:,} tensors, {totals['fresh']:,} "
                 f"fresh, {totals['parameters']:,} parameters; {totals['left_out']:,} values left out")
    return "\n".join(lines)


def to_json(report: LoadReport) -> dict[str, Any]:
    """The same as plain JSON values, with every tensor by its own name."""
    return {
        "parts": [{
            "part": account.part, "directory": account.directory, "source": account.source,
            "mapping": [{"parameter": path, "shape": list(leaf.shape), "tensors": list(leaf.tensors),
                         "sources": list(leaf.sources), "operation": leaf.operation}
                        for path, leaf in account.ported.items()],
            "left_out": _items(account.left_out), "fresh": _items(account.fresh)} for account in report.accounts],
        "fresh": _items(report.fresh),
        "totals": _totals(report),
    }


def _rows(account: TowerReport) -> list[tuple[str, str, str, str]]:
    rows = []
    for path, leaf in account.ported.items():
        first, *others = leaf.sources
        rows.append((first, path, _shown(leaf.shape), leaf.operation))
        rows += [(other, "", "", "") for other in others]
    return rows


def _columns(rows: list[tuple[str, str, str, str]]) -> list[str]:
    return [f"  {line}" for line in aligned([HEADINGS, *rows], words=len(HEADINGS))]


def _shown(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "one value"


def _items(items: Any) -> list[dict[str, Any]]:
    return [{"name": name, "shape": list(item.shape), "reason": item.reason} for name, item in items.items()]


def _totals(report: LoadReport) -> dict[str, int]:
    def values(items: list[Item]) -> int:
        return sum(math.prod(item.shape) for item in items)

    accounts = report.accounts
    from_files = sum(account.values for account in accounts)
    fresh = values([*report.fresh.values(), *(item for account in accounts for item in account.fresh.values())])
    return {"tensors": sum(len(leaf.tensors) for account in accounts for leaf in account.ported.values()),
            "from_files": from_files, "fresh": fresh, "parameters": from_files + fresh,
            "left_out": values([item for account in accounts for item in account.left_out.values()])}
