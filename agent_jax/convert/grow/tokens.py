"""Matches the token rows of two vocabularies by name: text tokens by their string, the others by block and token.

Blocks may be added, dropped and reordered, and a token may move within its block:

    source  | text ........ | iafm ...... |               ids in the checkpoint
    target  | text ........ | my_robot .. | iafm ......   each row: its source id, or -1 for a new token
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from agent_jax.actions.vocabulary import Vocabulary

TEXT = "text"  # the group of the text tokens


@dataclasses.dataclass(frozen=True)
class TokenGroup:
    """The text or one block, by numbers of tokens."""

    name: str
    carried: int  # have their own row in the checkpoint
    copied: int  # take the row of another token, by config.init.copy_tokens
    new: int


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """Where the row of every token comes from."""

    source_K: np.ndarray  # id in the checkpoint, -1 for a new token
    copied_K: np.ndarray  # whether that is the id of another token
    groups: tuple[TokenGroup, ...]  # of the new vocabulary, in order
    dropped: tuple[tuple[str, int], ...]  # (text or block, tokens of the checkpoint that the new vocabulary lacks)

    @property
    def carried(self) -> int:
        """Tokens with their own row in the checkpoint."""
        return int(((self.source_K >= 0) & ~self.copied_K).sum())


def token_ids(vocabulary: Vocabulary) -> dict[tuple[str | None, str], int]:
    """Id by (block, token), the block None for text; ids of the text tokenizer without a token are left out."""
    ids: dict[tuple[str | None, str], int] = {
        (None, token): number for number, token in enumerate(vocabulary.text.pieces()) if token}
    for block in vocabulary.blocks:
        numbered = zip(block.tokens, vocabulary.block_range(block.name), strict=True)
        ids |= {(block.name, token): number for token, number in numbered}
    return ids


def match_tokens(source: Vocabulary, target: Vocabulary, copy_tokens: Sequence[str] = ()) -> TokenRows:
    """The source of every row of the target's token table.

    Args:
        source: of the checkpoint.
        target: of the new model.
        copy_tokens: `config.init.copy_tokens`; a later entry overrides an earlier one.

    Raises:
        ValueError: an entry is malformed, names what neither vocabulary has, or a token that is carried by its name.
    """
    own_K = np.full(target.size, -1)
    there = token_ids(source)
    for name, number in token_ids(target).items():
        own_K[number] = there.get(name, -1)
    if source.text.to_json() == target.text.to_json():  # ids without a token, too
        own_K[:target.text.size] = np.arange(target.text.size)
    rows_K = own_K.copy()
    for i, entry in enumerate(copy_tokens):
        try:
            rows_K = _copied(entry, rows_K, own_K, source, target)
        except ValueError as error:
            raise ValueError(f"config.init.copy_tokens[{i}]={entry!r}: {error}") from error
    copied_K = (own_K < 0) & (rows_K >= 0)
    groups = []
    for name, ids in _ranges(target):
        own, rows = own_K[ids.start:ids.stop], rows_K[ids.start:ids.stop]
        groups.append(TokenGroup(name, int((own >= 0).sum()), int(((own < 0) & (rows >= 0)).sum()),
                                 int((rows < 0).sum())))
    taken = np.zeros(source.size, bool)
    taken[own_K[own_K >= 0]] = True
    dropped = ((name, int((~taken[ids.start:ids.stop]).sum())) for name, ids in _ranges(source))
    return TokenRows(rows_K, copied_K, tuple(groups), tuple((name, count) for name, count in dropped if count))


def _copied(entry: str, rows_K: np.ndarray, own_K: np.ndarray, source: Vocabulary, target: Vocabulary) -> np.ndarray:
    """`rows_K` with the rows of one entry of copy_tokens."""
    new, equals, old = (part.strip() for part in entry.partition("="))
    if not (new and equals and old):
        raise ValueError("expected NEW=OLD, each BLOCK/TOKEN or BLOCK; OLD may be text/TOKEN")
    tokens = {name: number for name, number in _named(new, target, "config.vocabulary").items() if own_K[number] < 0}
    if not tokens:
        raise ValueError(f"{new} is carried from the checkpoint by name; expected a new token, or a block with some")
    origin = _named(old, source, "the checkpoint")
    if "/" in old:
        [number] = origin.values()
        origin = dict.fromkeys(tokens, number)
    elif "/" in new:
        raise ValueError(f"{old} is a whole block; expected the token to copy, as {old}/TOKEN")
    both = [name for name in tokens if name in origin]
    if not both:
        raise ValueError(f"block {old} of the checkpoint has no token of the same name as a new one of {new}; expected "
                         "some, or one token for all, as BLOCK=BLOCK/TOKEN")
    rows_K = rows_K.copy()
    rows_K[[tokens[name] for name in both]] = [origin[name] for name in both]
    return rows_K


def _named(place: str, vocabulary: Vocabulary, where: str) -> dict[str, int]:
    """Ids by name of the tokens of BLOCK, or of the one token BLOCK/TOKEN or text/TOKEN."""
    group, slash, name = place.partition("/")
    blocks = {block.name: block for block in vocabulary.blocks}
    if group == TEXT and slash:
        ids = [number for number, token in enumerate(vocabulary.text.pieces()) if token == name]
        ids = ids or vocabulary.text.encode(name)
        if len(ids) != 1:
            raise ValueError(f"the text {name!r} is {len(ids)} tokens of {where}; expected exactly one")
        return {name: ids[0]}
    if group not in blocks:
        raise ValueError(f"{where} has no block {group!r}; expected one of {', '.join(blocks) or 'none'}")
    if slash:
        return {name: vocabulary.id(group, name)}
    return dict(zip(blocks[group].tokens, vocabulary.block_range(group), strict=True))


def _ranges(vocabulary: Vocabulary) -> list[tuple[str, range]]:
    """(name, ids) of the text and of each block."""
    blocks = [(block.name, vocabulary.block_range(block.name)) for block in vocabulary.blocks]
    return [(TEXT, range(vocabulary.text.size)), *blocks]
