"""The vocabulary of text, actions and states: text ids, then named, append-only blocks of tokens.

    0 ........ text.size - 1 | block 0 ............ | block 1 ... |
    OPT: 50,265 rows         | iafm: 1,313 rows     | ...         |  (the model pads the table beyond)

Actions and states are encoded as ids directly, not as text for the tokenizer.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from agent_jax.actions.text_tokenizer import EOS, ByteTokenizer, TextTokenizer, load_tokenizer, tokenizer_from_json
from agent_jax.fields import build_field

__all__ = ["BABYAI_BLOCK", "BLEEDING_EDGE_BUTTONS", "BLOCKS", "EOS", "IAFM", "MINECRAFT_BUTTONS", "Block",
           "ByteTokenizer", "TextTokenizer", "Vocabulary", "load_tokenizer"]

FORMAT = 1  # of to_json()


@dataclasses.dataclass(frozen=True)
class Block:
    """Named tokens with consecutive ids. Only append tokens, so that every id keeps its meaning."""

    name: str
    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if not self.name or not self.tokens:
            raise ValueError(f"block {self.name!r}: found {len(self.tokens)} tokens, expected a name and some tokens")
        if len(self._number) != len(self.tokens):
            repeated = next(token for i, token in enumerate(self.tokens) if token in self.tokens[:i])
            raise ValueError(f"block {self.name!r}: token {repeated!r} occurs twice")

    @functools.cached_property
    def _number(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def number(self, token: str) -> int:
        """The index of `token` in the block.

        Raises:
            ValueError: there is no such token; names the nearest one.
        """
        found = self._number.get(token)
        if found is None:
            near = difflib.get_close_matches(token, self.tokens, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self.tokens[:5])}, ..."
            raise ValueError(f"block {self.name!r} has no token {token!r}; {hint}")
        return found


MINECRAFT_BUTTONS = (
    "ESC", "back", "drop", "forward", *(f"hotbar.{i}" for i in range(1, 10)), "inventory", "jump", "left", "right",
    "sneak", "sprint", "swapHands", "attack", "use", "pickItem",
)
BLEEDING_EDGE_BUTTONS = (
    "Evade", "Jump", "LockOn", "Mount", "MeleeAttack", "SpecialAbility1", "SpecialAbility2", "SpecialAbility3",
    "SuperAbility", "SwitchLockOnTarget", "Taunt",
)


def _iafm_tokens() -> Iterable[str]:
    for i in range(21):
        for prefix in ("ROBOTACTION", "ROBOTEET", "ROBOTEETT"):  # Language-Table: action, effector, effector target
            yield from (f"{prefix}X{i}", f"{prefix}Y{i}")
    yield from ("ENDOFACTION", "STARTACTION", "TERMINAL", "STARTEET", "ENDOFEET", "STARTEETT", "ENDOFEETT")
    yield from MINECRAFT_BUTTONS
    yield from (f"CAMERA{axis}{degrees}" for axis in "XY" for degrees in range(-49, 51))
    yield from (f"ROBOTACTION{d}_{i}" for d in range(6) for i in range(21))  # CALVIN
    yield from (f"ROBOTSTATE{d}_{i}" for d in range(14) for i in range(21))
    yield from ("GRIPPER_OPEN", "GRIPPER_CLOSE", "GRIPPER_OPENED", "GRIPPER_CLOSED")
    yield from BLEEDING_EDGE_BUTTONS
    for side in "lr":
        yield from (f"{side}rot{i}" for i in range(1, 257))
        yield from (f"{side}mag{i}" for i in range(1, 5))
    # The paper's 1,311 tokens end here. It has no state delimiters for CALVIN; we append them.
    yield from ("STARTSTATE", "ENDOFSTATE")


IAFM = Block("iafm", tuple(_iafm_tokens()))  # arXiv 2402.05929: 1,311 tokens, and two more
BABYAI_BLOCK = Block(
    "babyai", ("STARTACTION", "ENDOFACTION", "left", "right", "forward", "pickup", "drop", "toggle", "done"))
BLOCKS = {block.name: block for block in (IAFM, BABYAI_BLOCK)}  # by the names that a config may use


class Vocabulary:
    """Text ids, then the ids of each block. Equal vocabularies have equal fingerprints."""

    def __init__(self, text: TextTokenizer, blocks: Sequence[Block]):
        """Number the tokens; raises ValueError if two blocks have the same name."""
        self.text = text
        self.blocks = tuple(blocks)
        self._ranges: dict[str, range] = {}
        self._blocks = {block.name: block for block in self.blocks}
        self.size = text.size  # K, real rows
        for block in self.blocks:
            if block.name in self._ranges:
                raise ValueError(f"vocabulary: block {block.name!r} occurs twice")
            self._ranges[block.name] = range(self.size, self.size + len(block.tokens))
            self.size += len(block.tokens)

    @classmethod
    def build(cls, tokenizer: str, blocks: Sequence[str | Block]) -> Vocabulary:
        """The vocabulary of a tokenizer (see `load_tokenizer`) and of blocks or names in `BLOCKS`.

        Raises:
            FileNotFoundError, ValueError: as `load_tokenizer`; or a block is unknown.
        """
        for name in blocks:
            if isinstance(name, str) and name not in BLOCKS:
                raise ValueError(f"vocabulary: no block {name!r}; expected a Block or one of {', '.join(BLOCKS)}")
        return cls(load_tokenizer(tokenizer), [BLOCKS[block] if isinstance(block, str) else block for block in blocks])

    def block_range(self, name: str) -> range:
        """The ids of a block.

        Raises:
            ValueError: there is no such block.
        """
        if name not in self._ranges:
            raise ValueError(f"vocabulary has no block {name!r}; it has {', '.join(self._ranges) or 'none'}; add it to "
                             "config.vocabulary.blocks")
        return self._ranges[name]

    def id(self, block_name: str, token: str) -> int:
        """The id of a block's token.

        Raises:
            ValueError: there is no such block or token.
        """
        return self.block_range(block_name)[self._blocks[block_name].number(token)]

    def ids(self, block_name: str, tokens: Iterable[str]) -> np.ndarray:
        """int32 ids of a block's tokens, in order.

        Raises:
            ValueError: there is no such block or token.
        """
        return np.array([self.id(block_name, token) for token in tokens], np.int32)

    def token(self, token_id: int) -> str:
        """The token of an id, for display: a block's token is in brackets, as [STARTACTION].

        Raises:
            ValueError: the id is out of range.
        """
        token_id = int(token_id)
        if 0 <= token_id < self.text.size:
            return self.text.token(token_id)
        for block in self.blocks:
            ids = self._ranges[block.name]
            if token_id in ids:
                return f"[{block.tokens[token_id - ids.start]}]"
        raise ValueError(f"id {token_id} is not among the {self.size} ids of this vocabulary")

    def to_json(self) -> dict[str, Any]:
        """The vocabulary with its tokenizer, as JSON."""
        blocks = [{"name": block.name, "tokens": list(block.tokens)} for block in self.blocks]
        return {"format": FORMAT, "text": self.text.to_json(), "blocks": blocks}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that `to_json` described.

        Raises:
            ValueError: the format is unknown, or a field is missing or of another type.
        """
        if content.get("format") != FORMAT:
            raise ValueError(f"stored vocabulary: found format {content.get('format')!r}, expected {FORMAT}")
        missing = [name for name in ("text", "blocks") if name not in content]
        if missing:
            raise ValueError(f"stored vocabulary: the field {missing[0]!r} is missing")
        blocks = build_field(tuple[Block, ...], content["blocks"], "stored vocabulary: blocks")
        return cls(tokenizer_from_json(content["text"]), blocks)

    @functools.cached_property
    def _fingerprint(self) -> str:
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def fingerprint(self) -> str:
        """Hex SHA-256 of the canonical JSON."""
        return self._fingerprint

    def difference(self, other: Vocabulary) -> str:
        """A description of the differences from `other`; "" if they are equal."""
        if self.fingerprint() == other.fingerprint():
            return ""
        lines = _text_difference(self.text, other.text)
        names, other_names = [b.name for b in self.blocks], [b.name for b in other.blocks]
        if names != other_names:
            lines.append(f"blocks: {', '.join(names) or 'none'} here, {', '.join(other_names) or 'none'} there")
        for name in names:
            if name in other_names:
                lines += _list_difference(f"block {name!r}", self._blocks[name].tokens, other._blocks[name].tokens)
        return "; ".join(lines)


def _text_difference(one: TextTokenizer, other: TextTokenizer) -> list[str]:
    a, b = one.to_json(), other.to_json()
    if a == b:
        return []
    if a["kind"] != b["kind"]:
        return [f"text: {a['kind']} with {one.size} ids here, {b['kind']} with {other.size} ids there"]
    if a["kind"] == "bpe":
        return _list_difference("text tokens", a["tokens"], b["tokens"]) + _list_difference(
            "text merges", a["merges"], b["merges"])
    return [f"text: two different tokenizer.json, with {one.size} ids here and {other.size} there"]


def _list_difference(what: str, one: Sequence[str], other: Sequence[str]) -> list[str]:
    lines: list[str] = []
    if len(one) != len(other):
        lines.append(f"{what}: {len(one)} here, {len(other)} there")
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return [*lines, f"{what}: number {i} is {a!r} here, {b!r} there"]
    return lines
