"""Declared specs: plain JSON in a config or data set, whose bounds may be open, to be found in the data.

    {"part": "bins", "key": "action", "index": 0, "prefix": "dx_", "bounds": "quantiles"}      declared
    {"part": "bins", "key": "action", "index": 0, "prefix": "dx_", "low": -0.021, "high": 0.02}   closed

Tokens do not depend on the bounds, so the vocabulary can be built from open specs.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent_jax.actions.parts import place_of
from agent_jax.actions.specs import ActionSpec, StateSpec
from agent_jax.actions.vocabulary import BLOCKS, Block

METHODS = ("min_max", "quantiles", "mean_3std")  # of the train split; the paper uses the last for CALVIN
DEFAULT_QUANTILES = (0.01, 0.99)  # usual in robot learning

Limits = Mapping[str, tuple[float, float]]  # (low, high) by place


@dataclasses.dataclass(frozen=True)
class OpenBounds:
    """The open bounds of a part."""

    key: str
    index: int | None
    method: str  # of METHODS
    quantiles: tuple[float, float]  # of the method "quantiles"

    @property
    def place(self) -> str:
        """The component, as "action[0]"."""
        return place_of(self.key, self.index)


def open_bounds(content: Mapping[str, Any], where: str) -> list[OpenBounds]:
    """The open parts of a declared spec, in order.

    Args:
        content: the spec.
        where: its field, for messages.

    Raises:
        ValueError: an unknown method, both bounds and numbers, or bounds of a part other than bins; names the part.
    """
    found: list[OpenBounds] = []
    for place, part in _parts(content, where):
        if "bounds" not in part and "quantiles" not in part:
            continue
        method = part.get("bounds", "quantiles")
        if part.get("part") != "bins":
            raise ValueError(f"{place}.bounds: found in a part {part.get('part')!r}, expected only in 'bins'")
        if given := [name for name in ("low", "high") if name in part]:
            raise ValueError(f"{place}: found both bounds={method!r} and {given[0]}={part[given[0]]}; remove one")
        if method not in METHODS:
            near = difflib.get_close_matches(str(method), METHODS, n=1)
            raise ValueError(f"{place}.bounds: found {method!r}, expected one of {', '.join(METHODS)}"
                             + (f"; did you mean {near[0]!r}?" if near else ""))
        if "quantiles" in part and method != "quantiles":
            raise ValueError(f"{place}.quantiles: found with bounds={method!r}, expected only with 'quantiles'")
        quantiles = part.get("quantiles", DEFAULT_QUANTILES)
        if not isinstance(quantiles, (list, tuple)) or len(quantiles) != 2 or not quantiles[0] < quantiles[1]:
            raise ValueError(f"{place}.quantiles: found {quantiles!r}, expected two numbers, the lower first")
        key, index = part.get("key", ""), part.get("index")
        found.append(OpenBounds(str(key), index, method, (float(quantiles[0]), float(quantiles[1]))))
    return found


def closed(content: Mapping[str, Any], limits: Limits | None, where: str) -> dict[str, Any]:
    """A copy of the declared spec with numbers for its open bounds.

    Args:
        content: the spec.
        limits: (low, high) by place of the open parts; None: 0 and 1, if only the tokens matter.
        where: its field, for messages.

    Raises:
        ValueError: as `open_bounds`.
    """
    numbers = {part.place: (0.0, 1.0) if limits is None else limits[part.place] for part in open_bounds(content, where)}
    plain = copy.deepcopy(dict(content))
    for _, part in _parts(plain, where):
        if "bounds" in part or "quantiles" in part:
            part["low"], part["high"] = numbers[place_of(part["key"], part.get("index"))]
            part.pop("bounds", None)
            part.pop("quantiles", None)
    return plain


def vocabulary_blocks(names: Sequence[str], specs: Iterable[Mapping[str, Any]]) -> list[Block]:
    """The blocks of config.vocabulary.blocks: known ones, and custom ones made from specs.

    Args:
        names: of the blocks.
        specs: declared specs of the domains in the order of their names, actions before states. A custom block has the
            tokens of all specs with that block, in this order.

    Raises:
        ValueError: a name is neither a known block nor the block of a spec.
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
            raise ValueError(f"config.vocabulary.blocks: found {name!r}, expected one of the known blocks "
                             f"{', '.join(BLOCKS)} or the block of an ActionSpec or StateSpec in config.data.domains"
                             + (f"; did you mean {near[0]!r}?" if near else ""))
        blocks.append(BLOCKS[name] if name in BLOCKS else Block(name, tuple(tokens[name])))
    return blocks


def _parts(content: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
    """(place, part) of every part that is a mapping; `from_dict` reports malformed parts."""
    found: list[tuple[str, Any]] = []
    groups = content.get("groups", ())
    for i, group in enumerate(groups if isinstance(groups, (list, tuple)) else ()):
        parts = group.get("parts", ()) if isinstance(group, Mapping) else ()
        found += [(f"{where}.groups[{i}].parts[{j}]", part)
                  for j, part in enumerate(parts if isinstance(parts, (list, tuple)) else ())
                  if isinstance(part, Mapping)]
    return found
