"""What happens to every parameter when a checkpoint is grown into another model, from shapes alone.

Each value of the new model is one of these; values of the checkpoint that are not used are dropped:

    carried   equal to the checkpoint's
    grown     made from the checkpoint's: rows of new tokens, more positions, resized positions
    fresh     initialised
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import InitConfig, ModelConfig
from agent_jax.convert.grow.fields import FieldDifference, check_fields, decoder_differs
from agent_jax.convert.grow.tokens import TokenRows, match_tokens
from agent_jax.help_pages import help_page
from agent_jax.models.agent import abstract_params
from agent_jax.models.language import POSITION_OFFSET
from agent_jax.runtime.path_patterns import compile_patterns

TOKENS, POSITIONS, PATCH_POSITIONS = (
    "language/token_embedding", "language/position_embedding", "vision/position_embedding")

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class AgentDescription:
    """A model and its vocabulary."""

    model: ModelConfig  # with `vocabulary_size`
    vocabulary: Vocabulary

    @functools.cached_property
    def leaves(self) -> dict[str, Any]:
        """`jax.ShapeDtypeStruct` of every parameter by path."""
        return flat(abstract_params(self.model))


@dataclasses.dataclass(frozen=True)
class LeafGrowth:
    """One parameter array: how many of its values come from where, and why not all are carried."""

    path: str
    shape: Shape | None  # in the new model; None: it is dropped
    source_shape: Shape | None  # in the checkpoint; None: it has none of this path
    carried: int = 0
    grown: int = 0
    fresh: int = 0
    dropped: int = 0
    reason: str = ""

    @property
    def is_carried(self) -> bool:
        """Whether nothing happens to it."""
        return not (self.grown or self.fresh or self.dropped)


@dataclasses.dataclass(frozen=True)
class Growth:
    """The plan for all parameters; report.py prints it."""

    source: AgentDescription
    target: AgentDescription
    fields: tuple[FieldDifference, ...]
    tokens: TokenRows
    leaves: tuple[LeafGrowth, ...]  # of the new model, then the dropped ones

    @property
    def is_identity(self) -> bool:
        """Whether the parameters are those of the checkpoint."""
        return all(leaf.is_carried for leaf in self.leaves)


def plan_growth(source: AgentDescription, target: AgentDescription, init: InitConfig) -> Growth:
    """What happens to every parameter of both models.

    Args:
        source: of the checkpoint.
        target: of the new model.
        init: `checkpoint` for messages, and the fields that ask for what is not done by default.

    Raises:
        ValueError: fields of config.model differ that may not, with both values; a pattern of `init.fresh` matches no
            parameter; an entry of `init.copy_tokens` is wrong; nothing of the checkpoint would be used.
    """
    fields = check_fields(source.model, target.model, init)
    tokens = match_tokens(source.vocabulary, target.vocabulary, init.copy_tokens)
    fresh = {path: f"config.init.fresh has {pattern!r}" for path, pattern in _asked_fresh(target, init.fresh).items()}
    if decoder_differs(fields):
        fresh = {path: "another MAE decoder" for path in target.leaves if path.startswith("mae/")} | fresh
    if source.model.classes != target.model.classes:
        fresh = {path: "another number of classes" if source.model.classes else "the checkpoint has no class head"
                 for path in target.leaves if path.startswith("classifier/")} | fresh
    if TOKENS not in fresh and not tokens.carried:
        raise ValueError(f"config.init.checkpoint={init.checkpoint}: none of its {source.vocabulary.size} tokens is in "
                         f"config.vocabulary, found {_blocks(source)} there and {_blocks(target)} here; expected a "
                         "checkpoint with some of the same tokens"
                         + help_page("guides/finetune.md", "Start from a pre-trained agent"))
    leaves = [_leaf(path, leaf.shape, source, target, tokens, fresh.get(path, "")) for path, leaf
              in target.leaves.items()]
    for path, leaf in source.leaves.items():
        if path not in target.leaves:
            reason = "no class head here" if path.startswith("classifier/") else "no temporal attention here"
            leaves.append(LeafGrowth(path, None, leaf.shape, dropped=leaf.size, reason=reason))
    if not any(leaf.carried or leaf.grown for leaf in leaves):
        raise ValueError(f"config.init.checkpoint={init.checkpoint}: config.init.fresh={init.fresh} leaves nothing of "
                         "it; expected some parameters to be taken, or no config.init.checkpoint")
    return Growth(source, target, tuple(fields), tokens, tuple(leaves))


def _leaf(path: str, shape: Shape, source: AgentDescription, target: AgentDescription, tokens: TokenRows,
          fresh: str) -> LeafGrowth:
    """What happens to one parameter of the new model."""
    size = math.prod(shape)
    found = source.leaves.get(path)
    if found is None:
        reason = fresh or ("temporal attention is added; its output starts at zero" if "/temporal_" in path else
                           "not in the checkpoint")
        return LeafGrowth(path, shape, None, fresh=size, reason=reason)
    if fresh:
        return LeafGrowth(path, shape, found.shape, fresh=size, dropped=found.size, reason=fresh)
    if path == TOKENS:
        return _token_leaf(shape, found.shape, source, target, tokens)
    if found.shape == shape:
        return LeafGrowth(path, shape, found.shape, carried=size)
    if path == POSITIONS:
        kept = min(size, found.size)
        reason = (f"{shape[0] - POSITION_OFFSET} positions, of {found.shape[0] - POSITION_OFFSET} in the checkpoint"
                  + (", which the new ones repeat" if size > found.size else ""))
        return LeafGrowth(path, shape, found.shape, carried=kept, grown=size - kept, dropped=found.size - kept,
                          reason=reason)
    assert path == PATCH_POSITIONS, f"{path}: {found.shape} in the checkpoint, {shape} here"
    old, new = (math.isqrt(one[0] - 1) for one in (found.shape, shape))
    return LeafGrowth(path, shape, found.shape, carried=shape[1], grown=size - shape[1],
                      reason=f"{old} x {old} positions resized to {new} x {new} (bicubic)")


def _token_leaf(shape: Shape, found: Shape, source: AgentDescription, target: AgentDescription,
                tokens: TokenRows) -> LeafGrowth:
    width, new = shape[1], sum(group.new for group in tokens.groups)
    copied, padding = int(tokens.copied_K.sum()), shape[0] - target.vocabulary.size
    if keeps_table(source, target, tokens):
        return LeafGrowth(TOKENS, shape, found, carried=math.prod(shape))
    parts = [f"{tokens.carried:,} of {target.vocabulary.size:,} tokens carried by name"]
    if copied:
        parts.append(f"{copied:,} copied (config.init.copy_tokens)")
    if new:
        parts.append(f"{new:,} new: the mean of the carried rows + N(0, {target.model.language.token_std})")
    if padding:
        parts.append(f"{padding:,} rows of padding, never read")
    return LeafGrowth(TOKENS, shape, found, carried=tokens.carried * width, grown=(copied + new) * width,
                      fresh=padding * width, dropped=(found[0] - tokens.carried) * width, reason="; ".join(parts))


def keeps_table(source: AgentDescription, target: AgentDescription, tokens: TokenRows) -> bool:
    """Whether the token table stays as it is, padding included."""
    same = source.vocabulary.size == target.vocabulary.size and tokens.carried == target.vocabulary.size
    ordered = same and bool((tokens.source_K[1:] > tokens.source_K[:-1]).all())
    return ordered and source.leaves[TOKENS].shape == target.leaves[TOKENS].shape


def _asked_fresh(target: AgentDescription, patterns: tuple[str, ...]) -> dict[str, str]:
    """The pattern of config.init.fresh by the path that it matches."""
    asked: dict[str, str] = {}
    for pattern in compile_patterns(patterns, list(target.leaves), "config.init.fresh"):
        asked |= {path: pattern.pattern for path in target.leaves if pattern.fullmatch(path)}
    return asked


def _blocks(agent: AgentDescription) -> str:
    return f"text of {agent.vocabulary.text.size} tokens and " + (
        ", ".join(block.name for block in agent.vocabulary.blocks) or "no blocks")


def on_mesh(growth: Growth, shardings: dict[str, Any], other: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The checkpoint's parameters as `jax.ShapeDtypeStruct`s that say where to read each.

    Args:
        growth: of the parameters.
        shardings: of the new model's parameters, by path; a carried one is read to where it stays.
        other: the sharding of those that change, such as a copy on every device.
    """
    carried = {leaf.path for leaf in growth.leaves if leaf.is_carried}
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path] if path in carried else other)
            for path, leaf in growth.source.leaves.items()}
