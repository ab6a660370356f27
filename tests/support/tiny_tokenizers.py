"""Tokenizers of a few tokens, in the formats of real ones."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import pre_tokenizers

MERGES = ["t h", "th e", "Ġ the", "c a", "ca t"]


def write_bpe(directory: Path, merges: list[str] | None = None) -> Path:
    """A tiny tokenizer in the format of OPT's files: four special tokens, the bytes, five merges."""
    merges = MERGES if merges is None else merges
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [merge.replace(" ", "") for merge in merges]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return directory
