"""Token rows by name: blocks added, dropped, reordered and changed; rows copied from named tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agent_jax.actions.vocabulary import BABYAI_BLOCK, IAFM, Block, ByteTokenizer, Vocabulary
from agent_jax.convert.grow.tokens import TokenGroup, match_tokens

TEXT = ByteTokenizer()
OLD = Block("arm", ("dx_0", "dx_1", "dx_2", "open"))
NEW = Block("arm", ("open", "dx_0", "dx_1", "dy_0"))  # dx_2 dropped, dy_0 added
HAND = Block("hand", ("open", "close"))


def vocabulary(*blocks: Block) -> Vocabulary:
    return Vocabulary(TEXT, blocks)


def test_the_same_vocabulary_keeps_every_row():
    rows = match_tokens(vocabulary(IAFM, OLD), vocabulary(IAFM, OLD))
    np.testing.assert_array_equal(rows.source_K, np.arange(len(rows.source_K)))
    assert (rows.carried, rows.dropped) == (len(rows.source_K), ())


def test_blocks_are_added_dropped_and_reordered_and_tokens_move_within_a_block():
    source, target = vocabulary(BABYAI_BLOCK, OLD), vocabulary(HAND, NEW)
    rows = match_tokens(source, target)
    for block, token in (("arm", "open"), ("arm", "dx_0"), ("arm", "dx_1")):
        assert rows.source_K[target.id(block, token)] == source.id(block, token)
    assert rows.source_K[target.id("arm", "dy_0")] == -1
    assert list(rows.source_K[target.ids("hand", HAND.tokens)]) == [-1, -1]  # "open" of another block is another token
    assert rows.groups == (TokenGroup("text", 260, 0, 0), TokenGroup("hand", 0, 0, 2), TokenGroup("arm", 3, 0, 1))
    assert rows.dropped == (("babyai", 9), ("arm", 1))


def test_text_tokens_of_two_tokenizers_are_matched_by_their_string(tmp_path: Path):
    letters = {token: number for number, token in enumerate(TEXT.pieces())}
    (tmp_path / "vocab.json").write_text(json.dumps({**letters, "ab": 260, "Ġab": 261}))
    (tmp_path / "merges.txt").write_text("a b\nĠ ab\n")
    pairs = Vocabulary.build(str(tmp_path), [OLD])
    rows = match_tokens(vocabulary(OLD), pairs)
    np.testing.assert_array_equal(rows.source_K, [*range(260), -1, -1, *range(260, 264)])
    back = match_tokens(pairs, vocabulary(OLD))
    np.testing.assert_array_equal(back.source_K, [*range(260), *range(262, 266)])
    assert back.dropped == (("text", 2),)


def test_rows_of_new_tokens_are_copied_from_named_tokens():
    source, target = vocabulary(OLD), vocabulary(HAND, NEW)
    rows = match_tokens(source, target, ("hand=arm", "arm/dy_0=arm/dx_0", "hand/close=text/c"))
    assert rows.source_K[target.id("hand", "open")] == source.id("arm", "open")
    assert rows.source_K[target.id("hand", "close")] == TEXT.encode("c")[0]
    assert rows.source_K[target.id("arm", "dy_0")] == source.id("arm", "dx_0")
    assert rows.groups[1:] == (TokenGroup("hand", 0, 2, 0), TokenGroup("arm", 3, 1, 0))
    assert rows.carried == 260 + 3
    everything = match_tokens(source, target, ("hand=arm/open",))
    assert list(everything.source_K[target.ids("hand", HAND.tokens)]) == [source.id("arm", "open")] * 2


@pytest.mark.parametrize(("entry", "message"), [
    ("hand", "expected NEW=OLD"),
    ("hnd=arm", "config.vocabulary has no block 'hnd'; expected one of hand, arm"),
    ("hand=iafm", "the checkpoint has no block 'iafm'; expected one of arm"),
    ("hand/opn=arm/open", "no token 'opn'; did you mean 'open'"),
    ("hand/open=arm/opn", "no token 'opn'; did you mean 'open'"),
    ("hand/open=arm", "arm is a whole block; expected the token to copy"),
    ("arm/open=arm/dx_0", "arm/open is carried from the checkpoint by name"),
    ("hand/open=text/two", "the text 'two' is 3 tokens of the checkpoint; expected exactly one"),
    ("arm=arm", "no token of the same name as a new one"),
])
def test_a_wrong_entry_of_copy_tokens_is_refused(entry: str, message: str):
    with pytest.raises(ValueError, match=message) as refusal:
        match_tokens(vocabulary(OLD), vocabulary(HAND, NEW), (entry,))
    assert str(refusal.value).startswith(f"config.init.copy_tokens[0]={entry!r}: ")
