"""A spec as a config or a data set declares it: plain JSON, whose bounds may still have to be found in the data.

    {"part": "bins", "key": "action", "index": 0, "prefix": "dx_", "bounds": "quantiles"}      declared
    {"part": "bins", "key": "action", "index": 0, "prefix": "dx_", "low": -0.021, "high": 0.02}   closed

Tokens do not depend on the bounds, so the vocabulary can be built of specs that are still open.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent_jax.actions.specs import ActionSpec, StateSpec
from agent_jax.actions.vocabulary import BLOCKS, Block

METHODS = ("min_max", "quantiles", "mean_3std")  # of the train split; the last as the paper has it for CALVIN
DEFAULT_QUANTILES = (0.01, 0.99)  # usual in robot learning: one step in fifty is clipped

Limits = Mapping[str, tuple[float, float]]  # (low, high) by place


@dataclasses.dataclass(frozen=True)
class OpenBounds:
    """A part whose bounds are to be found in the data."""

    key: str
    index: int | None
    method: str  # of METHODS
    quantiles: tuple[float, float]  # of the method "quantiles"

    @property
    def place(self) -> str:
        """How errors name the value."""
        return self.key if self.index is None else f"{self.key}[{self.index}]"


def open_bounds(content: Mapping[str, Any], where: str) -> list[OpenBounds]:
    """The open parts of a declared spec, in order.

    Args:
        content: the spec.
        where: its field, for messages.

    Raises:
        ValueError: an unknown method, bounds beside numbers, or bounds of a part that is no Bins; names the part.
    """
    found: list[OpenBounds] = []
    for place, part in _parts(content, where):
        if "bounds" not in part and "quantiles" not in part:
            continue
        method = part.get("bounds", "quantiles")
        if part.get("part") != "bins":
            raise ValueError(f"{place}.bounds: found it in a part {part.get('part')!r}, expected it only in 'bins'")
        if taken := [name for name in ("low", "high") if name in part]:
            raise ValueError(f"{place}: found both bounds={method!r} and {taken[0]}={part[taken[0]]}; leave out one")
        if method not in METHODS:
            near = difflib.get_close_matches(str(method), METHODS, n=1)
            raise ValueError(f"{place}.bounds: found {method!r}, expected one of {', '.join(METHODS)}"
                             + (f"; did you mean {near[0]!r}?" if near else ""))
        if "quantiles" in part and method != "quantiles":
            raise ValueError(f"{place}.quantiles: bounds={method!r} takes none; leave it out")
        quantiles = part.get("quantiles", DEFAULT_QUANTILES)
        if not isinstance(quantiles, (list, tuple)) or len(quantiles) != 2 or not quantiles[0] < quantiles[1]:
            raise ValueError(f"{place}.quantiles: found {quantiles!r}, expected two shares, the lower first")
        key, index = part.get("key", ""), part.get("index")
        found.append(OpenBounds(str(key), index, method, (float(quantiles[0]), float(quantiles[1]))))
    return found


def closed(content: Mapping[str, Any], limits: Limits | None, where: str) -> dict[str, Any]:
    """The declared spec with numbers for its open bounds.

    Args:
        content: the spec; it is not changed.
        limits: (low, high) by place of the open parts; None: 0 and 1, where only the tokens matter.
        where: its field, for messages.

    Raises:
        ValueError: as `open_bounds`.
    """
    numbers = {part.place: (0.0, 1.0) if limits is None else limits[part.place] for part in open_bounds(content, where)}
    plain = copy.deepcopy(dict(content))
    for _, part in _parts(plain, where):
        if "bounds" in part or "quantiles" in part:
            index = part.get("index")
            part["low"], part["high"] = numbers[part["key"] if index is None else f"{part['key']}[{index}]"]
            part.pop("bounds", None)
            part.pop("quantiles", None)
    return plain


def vocabulary_blocks(names: Sequence[str], specs: Iterable[Mapping[str, Any]]) -> list[Block]:
    """The blocks of config.vocabulary.blocks: known ones, and those made of the specs that name them.

    Args:
        names: of the blocks.
        specs: declared specs of the domains in the order of their names, actions before states. A block of one's own
            holds the tokens of every spec with that block, in this order.

    Raises:
        ValueError: a name that is neither a known block nor that of a spec.
    """
    tokens: dict[str, dict[str, None]] = {}
    for content in specs:
        kind = ActionSpec if content.get("kind", ActionSpec.kind) == ActionSpec.kind else StateSpec
        spec = kind.from_dict(closed(content, None, f"{kind.kind}_spec"))
        tokens.setdefault(spec.block, {}).update(dict.fromkeys(spec.tokens()))
    blocks: list[Block] = []
    for name in names:
        if name not in BLOCKS and name not in tokens:
            near = difflib.get_close_matches(name, [*BLOCKS, *tokens], n=1)
            raise ValueError(f"config.vocabulary.blocks: {name!r} is none of the known blocks {', '.join(BLOCKS)}, and "
                             f"no ActionSpec or StateSpec of config.data.domains has block={name!r}"
                             + (f"; did you mean {near[0]!r}?" if near else ""))
        blocks.append(BLOCKS[name] if name in BLOCKS else Block(name, tuple(tokens[name])))
    return blocks


def _parts(content: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
    """(place, part) of every part that is a mapping; what is malformed is left to `from_dict`, which names it."""
    found: list[tuple[str, Any]] = []
    groups = content.get("groups", ())
    for i, group in enumerate(groups if isinstance(groups, (list, tuple)) else ()):
        parts = group.get("parts", ()) if isinstance(group, Mapping) else ()
        found += [(f"{where}.groups[{i}].parts[{j}]", part)
                  for j, part in enumerate(parts if isinstance(parts, (list, tuple)) else ())
                  if isinstance(part, Mapping)]
    return found
