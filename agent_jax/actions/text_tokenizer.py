"""Text tokenizers: bytes, or byte-level BPE from Hugging Face files.

The first four ids are OPT's in every tokenizer: 0 <s>, 1 <pad>, 2 </s>, 3 <unk>. `encode` adds no special tokens; the
layout adds `EOS`. `to_json()` contains the whole tokenizer, independent of library versions, so that a checkpoint needs
no other files.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agent_jax.help_pages import help_page
from agent_jax.json_files import read_json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS = 2  # </s>, which begins every sample and ends answers
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")  # by id, as in OPT


class ByteTokenizer:
    """UTF-8 bytes after the four special ids: id = 4 + byte."""

    size = 4 + 256

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, with nothing added."""
        return [4 + byte for byte in text.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special tokens; invalid UTF-8 becomes U+FFFD."""
        return bytes(i - 4 for i in _checked(ids, self.size) if i >= 4).decode(errors="replace")

    def token(self, token_id: int) -> str:
        """One id, for display."""
        if token_id < 4:
            return SPECIAL_TOKENS[token_id]
        character = chr(token_id - 4)
        return character if character.isascii() and character.isprintable() else f"\\x{token_id - 4:02x}"

    def pieces(self) -> list[str]:
        """The token of each id as byte-level BPE writes it, so that equal tokens of both have equal names."""
        return [*SPECIAL_TOKENS, *byte_letters()]

    def to_json(self) -> dict[str, Any]:
        """The whole tokenizer; `tokenizer_from_json` reads it."""
        return {"kind": "bytes"}


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, described by plain JSON."""

    def __init__(self, description: Mapping[str, Any], where: str):
        """Build the tokenizer that `to_json()` described; `where` names its origin in errors.

        Raises:
            ValueError: the special tokens do not have OPT's ids, or vocabulary and merges do not match.
        """
        self._description = dict(description)
        kind = description["kind"]
        self._tokenizer = _byte_level_bpe(description, where) if kind == "bpe" else _from_file(description, where)
        for token, expected in (("<pad>", 1), ("</s>", 2)):
            found = self._tokenizer.token_to_id(token)
            if found != expected:
                raise ValueError(f"{where}: found {token!r} at id {found}, expected {expected} as in OPT's tokenizer; "
                                 "use OPT's files, or files with the same first four tokens")
        self.size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, with nothing added; `</s>` in the text becomes the token, as in transformers."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special tokens; invalid UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode(_checked(ids, self.size), skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        """One id, for display."""
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def pieces(self) -> list[str]:
        """The token of each id as its file writes it, such as "Ġred"; "" for an unused id."""
        found = [""] * self.size
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            found[number] = token
        return found

    def to_json(self) -> dict[str, Any]:
        """The whole tokenizer; `tokenizer_from_json` reads it."""
        return self._description

    def library_json(self) -> str:
        """The tokenizer as a tokenizer.json of the `tokenizers` library."""
        return self._tokenizer.to_str(pretty=True)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the description, not the library's object."""
        return HuggingFaceTokenizer, (self._description, "tokenizer")


TextTokenizer = ByteTokenizer | HuggingFaceTokenizer


def load_tokenizer(path: str) -> TextTokenizer:
    """The tokenizer at `path`: "bytes", a folder with OPT's vocab.json and merges.txt, or a tokenizer.json.

    Tokens in added_tokens.json next to vocab.json are added.

    Raises:
        FileNotFoundError: the path or all of the files are missing.
        ValueError: a file is malformed, or the special tokens do not have OPT's ids.
    """
    if path == "bytes":
        return ByteTokenizer()
    place = pathlib.Path(path).expanduser()
    vocab, merges, single = place / "vocab.json", place / "merges.txt", place / "tokenizer.json"
    if place.is_file():
        single = place
    elif vocab.is_file() and merges.is_file():
        try:
            lines = merges.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{merges}: not a text in UTF-8: {error}") from error
        pairs = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
        tokens = _tokens_by_id(vocab)
        description = {"kind": "bpe", "tokens": tokens, "merges": pairs}
        if (added := place / "added_tokens.json").is_file():
            description["added"] = _tokens_by_id(added, first=len(tokens))
        return HuggingFaceTokenizer(description, str(place))
    if not single.is_file():
        found = sorted(item.name for item in place.iterdir())[:10] if place.is_dir() else "nothing"
        raise FileNotFoundError(f"tokenizer={path!r}: found {found}, expected a folder with vocab.json and merges.txt, "
                                'a tokenizer.json or its folder, or "bytes"'
                                + help_page("guides/finetune.md", "3. Train"))
    return HuggingFaceTokenizer({"kind": "tokenizer.json", "content": read_json_object(single)}, str(single))


def tokenizer_from_json(description: Mapping[str, Any]) -> TextTokenizer:
    """The tokenizer that `to_json()` described.

    Raises:
        ValueError: the description is malformed or of an unknown kind.
    """
    if not isinstance(description, Mapping):
        raise ValueError(f"stored tokenizer: found a {type(description).__name__}, expected a JSON object")
    kind = description.get("kind")
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "bpe":
        for name in ("tokens", "merges", "added"):
            texts = description.get(name, [] if name == "added" else None)
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"stored tokenizer: {name}: found {str(texts)[:80]}, expected a list of texts")
    if kind == "tokenizer.json" and not isinstance(description.get("content"), Mapping):
        raise ValueError("stored tokenizer: content: expected the JSON object of a tokenizer.json")
    if kind in ("bpe", "tokenizer.json"):
        return HuggingFaceTokenizer(description, "stored tokenizer")
    raise ValueError(f"stored tokenizer: found kind {kind!r}, expected bytes, bpe or tokenizer.json")


def byte_letters() -> list[str]:
    """The letter of each byte in byte-level BPE: itself if printable, else one from U+0100 on (Radford, 2019)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _checked(ids: Iterable[int], size: int) -> list[int]:
    plain = [int(i) for i in ids]
    for i in plain:
        if not 0 <= i < size:
            raise ValueError(f"text id {i} is not among the {size} text ids; decode action ids by the ActionSpec")
    return plain


def _tokens_by_id(vocab: pathlib.Path, first: int = 0) -> list[str]:
    tokens = read_json_object(vocab)
    by_id = sorted(tokens, key=tokens.__getitem__) if all(type(i) is int for i in tokens.values()) else []
    last = first + len(tokens) - 1
    if [tokens[token] for token in by_id] != list(range(first, last + 1)):
        raise ValueError(f"{vocab}: expected an object token -> id with every id from {first} to {last} once")
    return by_id


def _byte_level_bpe(description: Mapping[str, Any], where: str) -> Tokenizer:
    """GPT-2's byte-level BPE as OPT uses it: no prefix space, no normalisation."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers  # a slow import, not needed for bytes
    from tokenizers.models import BPE

    tokens: Sequence[str] = description["tokens"]
    ids = {token: i for i, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for line in description["merges"]:
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= ids.keys():
            raise ValueError(f"{where}: the merge {line!r} gives a token that is not in the vocabulary; use merges.txt "
                             "and vocab.json of the same tokenizer")
        merges.append((left, right))
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # OPT's special tokens; "<s>" and "<unk>" have ids, but in a text they are tokenized as plain text.
    specials = [AddedToken(token, special=True, normalized=False) for token in ("</s>", "<pad>") if token in ids]
    tokenizer.add_special_tokens(specials)
    added: Sequence[str] = description.get("added", ())
    if known := sorted(ids.keys() & set(added)):
        raise ValueError(f"{where}: added_tokens.json has {known[:5]}, which vocab.json has too")
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def _from_file(description: Mapping[str, Any], where: str) -> Tokenizer:
    from tokenizers import Tokenizer

    content = description["content"]
    model = content.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise ValueError(f"{where}: found fields {sorted(content)[:10]}, expected a tokenizer.json with model.vocab")
    try:
        tokenizer = Tokenizer.from_str(json.dumps(content))
    except BaseException as error:  # the library has no error class, and its panics are not Exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(f"{where}: not a tokenizer.json that the tokenizers library can read: {error}") from error
    tokenizer.no_padding()  # the layout pads rows
    tokenizer.no_truncation()
    return tokenizer
