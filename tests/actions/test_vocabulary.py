from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import MERGES, write_bpe

from agent_jax.actions.text_tokenizer import HuggingFaceTokenizer, tokenizer_from_json
from agent_jax.actions.vocabulary import BABYAI_BLOCK, EOS, IAFM, Block, ByteTokenizer, Vocabulary, load_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    tokenizer = load_tokenizer(str(write_bpe(tmp_path_factory.mktemp("tiny"))))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def opt(opt_tokenizer: Path) -> Vocabulary:
    return Vocabulary.build(str(opt_tokenizer), ("iafm",))


# The paper's block


def test_the_iafm_block_has_the_papers_1311_tokens_and_the_two_state_delimiters() -> None:
    assert len(IAFM.tokens) == 1313
    assert IAFM.tokens[1311:] == ("STARTSTATE", "ENDOFSTATE")


def test_the_iafm_tokens_have_the_papers_order() -> None:
    sections = [
        (0, "ROBOTACTIONX0 ROBOTACTIONY0 ROBOTEETX0 ROBOTEETY0 ROBOTEETTX0 ROBOTEETTY0 ROBOTACTIONX1"),
        (120, "ROBOTACTIONX20 ROBOTACTIONY20 ROBOTEETX20 ROBOTEETY20 ROBOTEETTX20 ROBOTEETTY20"),
        (126, "ENDOFACTION STARTACTION TERMINAL STARTEET ENDOFEET STARTEETT ENDOFEETT"),
        (133, "ESC back drop forward hotbar.1 hotbar.2 hotbar.3 hotbar.4 hotbar.5 hotbar.6 hotbar.7 hotbar.8 hotbar.9 "
              "inventory jump left right sneak sprint swapHands attack use pickItem"),
        (156, "CAMERAX-49 CAMERAX-48"),
        (205, "CAMERAX0"),
        (255, "CAMERAX50 CAMERAY-49"),
        (355, "CAMERAY50 ROBOTACTION0_0 ROBOTACTION0_1"),
        (481, "ROBOTACTION5_20 ROBOTSTATE0_0"),
        (775, "ROBOTSTATE13_20 GRIPPER_OPEN GRIPPER_CLOSE GRIPPER_OPENED GRIPPER_CLOSED"),
        (780, "Evade Jump LockOn Mount MeleeAttack SpecialAbility1 SpecialAbility2 SpecialAbility3 SuperAbility "
              "SwitchLockOnTarget Taunt"),
        (791, "lrot1"),
        (1046, "lrot256 lmag1 lmag2 lmag3 lmag4 rrot1"),
        (1306, "rrot256 rmag1 rmag2 rmag3 rmag4"),
    ]
    for start, text in sections:
        tokens = tuple(text.split())
        assert IAFM.tokens[start : start + len(tokens)] == tokens


def test_the_built_in_blocks_are_frozen() -> None:
    """Every id keeps its meaning in all checkpoints: only append tokens, outside the slices below."""
    def digest(tokens: tuple[str, ...]) -> str:
        return hashlib.sha256(" ".join(tokens).encode()).hexdigest()[:16]

    assert digest(IAFM.tokens[:1313]) == "ddfe3b679946e393"
    assert digest(BABYAI_BLOCK.tokens[:9]) == "b5efc0a8a27e371f"


# Ids


def test_with_opts_files_the_ids_are_those_of_the_paper(opt: Vocabulary) -> None:
    assert opt.text.size == 50_265
    assert opt.block_range("iafm") == range(50_265, 51_578)
    assert opt.id("iafm", "rmag4") + 1 == 51_576
    assert opt.size == 51_578
    assert opt.id("iafm", "STARTACTION") == 50_392


def test_blocks_follow_the_text_in_order_and_ids_map_back_to_tokens() -> None:
    vocabulary = Vocabulary.build("bytes", ("babyai", Block("arm", ("up", "down")), "iafm"))
    assert vocabulary.size == 260 + 9 + 2 + 1313
    assert vocabulary.block_range("arm") == range(269, 271)
    ids = vocabulary.ids("arm", ["down", "up"])
    assert ids.dtype == np.int32
    assert ids.tolist() == [270, 269]
    assert vocabulary.id("babyai", "left") != vocabulary.id("iafm", "left")
    for block in vocabulary.blocks:
        start = vocabulary.block_range(block.name).start
        for i, token in enumerate(block.tokens):
            assert vocabulary.id(block.name, token) == start + i
            assert vocabulary.token(start + i) == f"[{token}]"


def test_every_id_has_a_display_token_and_ids_out_of_range_are_refused() -> None:
    vocabulary = Vocabulary.build("bytes", ("babyai",))
    assert all(vocabulary.token(i) for i in range(vocabulary.size))
    assert [vocabulary.token(i) for i in (EOS, 4 + ord("a"), 4 + 10, 4 + 200)] == ["</s>", "a", "\\x0a", "\\xc8"]
    for i in (-1, vocabulary.size):
        with pytest.raises(ValueError, match=f"id {i} is not among the 269 ids"):
            vocabulary.token(i)


def test_unknown_blocks_and_tokens_are_named_with_the_nearest_one() -> None:
    vocabulary = Vocabulary.build("bytes", ("babyai",))
    with pytest.raises(ValueError, match=r"no block 'iafm'; it has babyai; .*config.vocabulary.blocks"):
        vocabulary.id("iafm", "left")
    with pytest.raises(ValueError, match=r"block 'babyai' has no token 'foward'; did you mean 'forward'\?"):
        vocabulary.ids("babyai", ["left", "foward"])
    with pytest.raises(ValueError, match="no block 'babyia'; expected a Block or one of iafm, babyai"):
        Vocabulary.build("bytes", ("babyia",))


def test_repeated_blocks_repeated_tokens_and_empty_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="block 'babyai' occurs twice"):
        Vocabulary.build("bytes", ("babyai", "babyai"))
    with pytest.raises(ValueError, match="block 'arm': token 'up' occurs twice"):
        Block("arm", ("up", "down", "up"))
    with pytest.raises(ValueError, match="block 'arm': found 0 tokens"):
        Block("arm", ())


# Text


def test_bytes_follow_the_four_special_ids() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.size == 260
    assert tokenizer.encode("go\u00e9") == [4 + 103, 4 + 111, 4 + 0xC3, 4 + 0xA9]
    assert tokenizer.decode([EOS, 4 + 103, 1, 4 + 111]) == "go"
    assert tokenizer.decode([4 + 0xC3]) == "\ufffd"


@given(st.text())
def test_bytes_decode_to_the_same_text(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(4 <= i < tokenizer.size for i in ids)


def test_byte_level_bpe_applies_the_merges_of_its_files(tiny: HuggingFaceTokenizer) -> None:
    assert tiny.size == 4 + 256 + 5
    the, cat = tiny.encode(" the"), tiny.encode("cat")
    assert the == [4 + 256 + 2]
    assert cat == [4 + 256 + 4]
    assert tiny.encode(" the cat") == [*the, *tiny.encode(" "), *cat]
    assert tiny.encode("</s> the") == [EOS, *the]
    assert tiny.encode("") == []
    assert tiny.token(the[0]) == " the"
    assert tiny.token(EOS) == "</s>"


@given(text=st.text())
def test_byte_level_bpe_decodes_to_the_same_text(tiny: HuggingFaceTokenizer, text: str) -> None:
    if "</s>" not in text and "<pad>" not in text:
        assert tiny.decode(tiny.encode(text)) == text


def test_opts_files_give_opts_ids(opt: Vocabulary) -> None:
    # Ids of transformers' GPT2Tokenizer on the same files.
    expected = {
        "</s>A photo of a cat": [2, 250, 1345, 9, 10, 4758],
        "push the red moon to the blue cube.": [41935, 5, 1275, 6950, 7, 5, 2440, 37179, 4],
        "  two  spaces\n\ttab": [1437, 80, 1437, 5938, 50118, 50117, 34108],
        "na\u00efve caf\u00e9 \u2014 \u5317\u4eac \U0001f642": [
            2133, 48350, 26059, 93, 47111, 14285, 6800, 46499, 11582, 45868],
        "<s> <unk> <mask>": [41552, 29, 15698, 28696, 6435, 15698, 28696, 43776, 15698],
    }
    for text, ids in expected.items():
        assert opt.text.encode(text) == ids
        assert opt.text.decode(ids) == text.removeprefix("</s>")


def test_action_ids_are_not_text(tiny: HuggingFaceTokenizer) -> None:
    for text in (ByteTokenizer(), tiny):
        vocabulary = Vocabulary(text, (IAFM,))
        start = vocabulary.id("iafm", "STARTACTION")
        assert start not in vocabulary.text.encode("[STARTACTION]")
        for i in (start, text.size, -1):
            with pytest.raises(ValueError, match=f"text id {i} is not among the {text.size} text ids"):
                text.decode([i])


def test_a_tokenizer_json_is_read_from_its_file_or_folder(tiny: HuggingFaceTokenizer, tmp_path: Path) -> None:
    content = json.loads(tiny._tokenizer.to_str())
    content["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1,
                          "pad_type_id": 0, "pad_token": "<pad>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = load_tokenizer(str(path))
        assert tokenizer.size == tiny.size
        assert tokenizer.encode("the cat sat") == tiny.encode("the cat sat")
        again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert again.encode("the cat sat") == tiny.encode("the cat sat")


def test_a_missing_tokenizer_is_named_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer='.*none': found nothing, expected a folder with"):
        load_tokenizer(str(tmp_path / "none"))
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"found \['vocab.json'\], expected .* merges.txt"):
        load_tokenizer(str(tmp_path))


def test_broken_tokenizer_files_are_named(tmp_path: Path) -> None:
    place = write_bpe(tmp_path / "broken")
    (place / "vocab.json").write_text('{"<s>": 0,')
    with pytest.raises(ValueError, match=r"broken/vocab.json: is not JSON"):
        load_tokenizer(str(place))
    (place / "vocab.json").write_text('{"<s>": 0, "<pad>": 2}')
    with pytest.raises(ValueError, match=r"broken/vocab.json: expected .* every id from 0 to 1 once"):
        load_tokenizer(str(place))
    (place / "vocab.json").write_text('["<s>"]')
    with pytest.raises(ValueError, match=r"broken/vocab.json: found a list, expected a JSON object"):
        load_tokenizer(str(place))
    foreign = write_bpe(tmp_path / "foreign")
    (foreign / "merges.txt").write_text("t h\nx q\n")
    with pytest.raises(ValueError, match=r"foreign: the merge 'x q' gives a token that is not in the vocabulary"):
        load_tokenizer(str(foreign))
    (tmp_path / "tokenizer.json").write_text('{"hello": 1}')
    with pytest.raises(ValueError, match=r"tokenizer.json: found fields \['hello'\]"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unheard", "vocab": {}}}')
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer.json that"):
        load_tokenizer(str(tmp_path))


def test_tokens_added_to_opts_are_loaded(tmp_path: Path) -> None:
    place = write_bpe(tmp_path / "added")
    plain = load_tokenizer(str(place))
    (place / "added_tokens.json").write_text(json.dumps({"<cam 1>": plain.size + 1, "<cam 0>": plain.size}))
    tokenizer = load_tokenizer(str(place))
    assert tokenizer.size == plain.size + 2
    for same in (tokenizer, tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))):
        ids = same.encode("the<cam 1> cat<cam 0>")
        assert [i - plain.size for i in ids if i >= plain.size] == [1, 0]
        assert same.decode(ids) == "the<cam 1> cat<cam 0>"
    (place / "added_tokens.json").write_text("{}")
    assert load_tokenizer(str(place)).to_json() == {**plain.to_json(), "added": []}
    (place / "added_tokens.json").write_text(json.dumps({"<cam 0>": plain.size + 1}))
    with pytest.raises(ValueError, match=rf"added_tokens.json: expected .* from {plain.size} to {plain.size} once"):
        load_tokenizer(str(place))
    (place / "added_tokens.json").write_text(json.dumps({"<s>": plain.size}))
    with pytest.raises(ValueError, match=r"added: added_tokens.json has \['<s>'\], which vocab.json has"):
        load_tokenizer(str(place))


def test_a_tokenizer_in_the_home_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bpe(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_tokenizer("~/mine").to_json() == load_tokenizer(str(tmp_path / "mine")).to_json()


def test_a_tokenizer_without_opts_special_ids_is_refused(tmp_path: Path) -> None:
    place = write_bpe(tmp_path)
    tokens = json.loads((place / "vocab.json").read_text(encoding="utf-8"))
    tokens["<s>"], tokens["</s>"] = 2, 0
    (place / "vocab.json").write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match=r"found '</s>' at id 0, expected 2 as in OPT's tokenizer"):
        load_tokenizer(str(place))


# JSON, fingerprints, differences


def test_a_vocabulary_from_its_json_is_equal(tiny: HuggingFaceTokenizer) -> None:
    for text in (ByteTokenizer(), tiny):
        vocabulary = Vocabulary(text, (BABYAI_BLOCK, IAFM))
        again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
        assert again.to_json() == vocabulary.to_json()
        assert again.fingerprint() == vocabulary.fingerprint()
        assert again.difference(vocabulary) == ""
        assert again.size == vocabulary.size
        assert again.text.encode("the cat") == text.encode("the cat")


def test_opts_vocabulary_from_its_json_is_equal(opt: Vocabulary) -> None:
    again = Vocabulary.from_json(json.loads(json.dumps(opt.to_json())))
    assert again.fingerprint() == opt.fingerprint()
    assert again.text.encode("A photo of a cat") == [250, 1345, 9, 10, 4758]


def test_a_fingerprint_is_the_same_in_every_process_and_release() -> None:
    vocabulary = Vocabulary.build("bytes", ("iafm", "babyai"))
    assert vocabulary.fingerprint() == "3931003e99290c13132279d55ca458271d89e70ca67473e78f3c462aa6042a84"
    command = ("from agent_jax.actions.vocabulary import *; "
               "print(Vocabulary.build('bytes', ('iafm', 'babyai')).fingerprint())")
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == vocabulary.fingerprint()


def test_a_malformed_stored_vocabulary_is_refused() -> None:
    content = Vocabulary.build("bytes", ("babyai",)).to_json()
    with pytest.raises(ValueError, match="found format 2, expected 1"):
        Vocabulary.from_json({**content, "format": 2})
    with pytest.raises(ValueError, match="the field 'blocks' is missing"):
        Vocabulary.from_json({"format": 1, "text": content["text"]})
    with pytest.raises(ValueError, match=r"found kind 'words', expected bytes, bpe or tokenizer\.json"):
        Vocabulary.from_json({**content, "text": {"kind": "words"}})


def test_a_difference_names_what_differs(tiny: HuggingFaceTokenizer, tmp_path: Path) -> None:
    one = Vocabulary(ByteTokenizer(), (Block("arm", ("up", "down")), BABYAI_BLOCK))
    assert one.difference(one) == ""
    cases = [
        (Vocabulary(tiny, one.blocks), ["text: bytes with 260 ids here, bpe with 265 ids there"]),
        (Vocabulary(ByteTokenizer(), (BABYAI_BLOCK,)), ["blocks: arm, babyai here, babyai there"]),
        (Vocabulary(ByteTokenizer(), (BABYAI_BLOCK, one.blocks[0])), ["blocks: arm, babyai here, babyai, arm there"]),
        (Vocabulary(ByteTokenizer(), (Block("arm", ("up", "left")), BABYAI_BLOCK)),
         ["block 'arm': number 1 is 'down' here, 'left' there"]),
        (Vocabulary(ByteTokenizer(), (Block("arm", ("up", "down", "stop")), BABYAI_BLOCK)),
         ["block 'arm': 2 here, 3 there"]),
    ]
    for other, expected in cases:
        assert one.fingerprint() != other.fingerprint()
        assert one.difference(other).split("; ") == expected
    reordered = load_tokenizer(str(write_bpe(tmp_path, [MERGES[3], *MERGES[:3], MERGES[4]])))
    difference = Vocabulary(tiny, ()).difference(Vocabulary(reordered, ()))
    assert difference == ("text tokens: number 260 is 'th' here, 'ca' there; "
                          "text merges: number 0 is 't h' here, 'c a' there")


@settings(max_examples=20)
@given(st.lists(st.lists(st.text(min_size=1), min_size=1, unique=True), max_size=3))
def test_vocabularies_differ_exactly_when_their_fingerprints_do(lists: list[list[str]]) -> None:
    one = Vocabulary(ByteTokenizer(), [Block(f"b{i}", tuple(tokens)) for i, tokens in enumerate(lists)])
    for other in (one, Vocabulary(ByteTokenizer(), one.blocks[:-1]), Vocabulary(ByteTokenizer(), (BABYAI_BLOCK,))):
        assert (one.difference(other) == "") == (one.to_json() == other.to_json())
        assert (one.fingerprint() == other.fingerprint()) == (one.to_json() == other.to_json())


def test_a_tokenizer_can_be_pickled(tiny: HuggingFaceTokenizer) -> None:
    again = copy.deepcopy(tiny)  # by __reduce__, as between processes
    assert again._tokenizer is not tiny._tokenizer
    assert again.to_json() == tiny.to_json()
    assert again.encode("the cat") == tiny.encode("the cat")


def test_a_byte_vocabulary_does_not_import_the_tokenizer_library() -> None:
    command = ("import sys; from agent_jax.actions.vocabulary import Vocabulary; Vocabulary.build('bytes', ('iafm',)); "
               "sys.exit('tokenizers' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


@pytest.mark.parametrize(("change", "named"), [
    ({"text": "bytes"}, "tokenizer: found a str"), ({"text": {"kind": "bpe", "tokens": [1], "merges": []}}, "tokens"),
    ({"text": {"kind": "tokenizer.json", "content": 3}}, "content"), ({"blocks": {}}, "blocks"),
    ({"blocks": [{"tokens": ["a"]}]}, "name"), ({"blocks": [{"name": "a", "tokens": [["x"]]}]}, r"tokens\[0\]"),
])
def test_a_stored_vocabulary_of_other_types_is_refused_by_field(change: dict, named: str):
    content = {**Vocabulary.build("bytes", ("babyai",)).to_json(), **change}
    with pytest.raises(ValueError, match=f"stored .*{named}"):
        Vocabulary.from_json(content)
