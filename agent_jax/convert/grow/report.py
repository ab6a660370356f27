"""What growing a checkpoint does, as a table by part, and as JSON.

The table:

    part      carried   grown  fresh  dropped
    vision    123,456       0  8,192        0
    language  456,789   1,024      0      512
"""

from __future__ import annotations

from typing import Any

from agent_jax.convert.grow.plan import Growth, LeafGrowth
from agent_jax.convert.huggingface.load_report import Item, grouped
from agent_jax.text_table import aligned

COUNTS = ("carried", "grown", "fresh", "dropped")


def counts_by_part(growth: Growth) -> dict[str, dict[str, int]]:
    """Numbers of parameters by part of the model, and of all parts as "total"."""
    parts: dict[str, dict[str, int]] = {}
    for leaf in growth.leaves:
        for name in (leaf.path.split("/")[0], "total"):
            counts = parts.setdefault(name, dict.fromkeys(COUNTS, 0))
            for count in COUNTS:
                counts[count] += getattr(leaf, count)
    return {**{name: counts for name, counts in parts.items() if name != "total"}, "total": parts["total"]}


def growth_table(growth: Growth) -> str:
    """The table of parameters, then what was grown, initialised and dropped, and why, and the tokens by block."""
    rows = [(name, *(f"{counts[count]:,}" for count in COUNTS)) for name, counts in counts_by_part(growth).items()]
    lines = [f"  {line}" for line in aligned([("parameters", *COUNTS), *rows], words=1)]
    for title in ("grown", "fresh", "dropped"):
        lines += grouped(title, {leaf.path: Item((getattr(leaf, title),), leaf.reason)
                                 for leaf in growth.leaves if _title(leaf) == title})
    tokens = growth.tokens
    if any(group.copied or group.new for group in tokens.groups) or tokens.dropped:
        found = [f"{group.name} {group.carried:,} carried" + (f", {group.copied:,} copied" if group.copied else "")
                 + (f", {group.new:,} new" if group.new else "") for group in tokens.groups]
        found += [f"{name} {count:,} dropped" for name, count in tokens.dropped]
        lines.append(f"  tokens: {'; '.join(found)}")
    return "\n".join(lines)


def growth_json(growth: Growth) -> dict[str, Any]:
    """The same as JSON, with every parameter that is not carried and every field that differs."""
    counts = counts_by_part(growth)
    return {
        "total": counts.pop("total"),
        "parts": counts,
        "leaves": [{"path": leaf.path, "shape": leaf.shape, "source_shape": leaf.source_shape,
                    **{count: getattr(leaf, count) for count in COUNTS}, "reason": leaf.reason}
                   for leaf in growth.leaves if not leaf.is_carried],
        "tokens": {"groups": [{"name": group.name, "carried": group.carried, "copied": group.copied, "new": group.new}
                              for group in growth.tokens.groups],
                   "dropped": dict(growth.tokens.dropped)},
        "fields": [{"field": f"config.model.{one.name}", "there": one.there, "here": one.here}
                   for one in growth.fields],
    }


def _title(leaf: LeafGrowth) -> str:
    """The line of the report that a parameter belongs to."""
    if leaf.is_carried:
        return ""
    if leaf.grown or (leaf.carried and leaf.fresh):
        return "grown"
    return "fresh" if leaf.fresh else "dropped"
