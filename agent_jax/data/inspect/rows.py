"""The first samples of a data set as training lays them out, for the terminal.

    </s> push the red block  ▣  0.31 0.12 ...  STARTACTION ROBOTACTIONX13 ROBOTACTIONY3 ENDOFACTION  ▣ ...
    text                  image  state          action

Kinds are coloured: text plain, images blue, states yellow, actions green.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap

from agent_jax.actions.declarations import vocabulary_blocks
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.config import DomainConfig
from agent_jax.data.inspect.config import train_split
from agent_jax.data.pipeline.domain_specs import DomainSpecs
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Window
from agent_jax.data.pipeline.mixture_table import check_labels
from agent_jax.data.pipeline.windows import Windows
from agent_jax.data.store.store import Store

_SAMPLES = 2
_COLOURS = {"image": "\x1b[34m", "state": "\x1b[33m", "action": "\x1b[32m"}
_MOST_TOKENS = 10_000  # of a text, so that none is refused
_IMAGE_SIZE = 16  # pixels; the images are not shown


def first_rows(store: Store, config: DomainConfig, specs: DomainSpecs | None) -> tuple[list[str], str]:
    """Lines that show the first samples, and the problem with them or ""."""
    split = train_split(config, store)
    try:
        windows = windows_of(store, any_length(config), specs, split, _IMAGE_SIZE)
        samples = [windows.read(number, 0) for number in range(min(_SAMPLES, len(windows)))]
    except ValueError as error:
        return [], f"the first samples cannot be laid out: {error}"
    lines = ["", f"first samples of {split!r}: {len(windows):,} windows of up to {config.window} steps; text, "
                 f"{_coloured('image', 'image')}, {_coloured('state', 'state')}, {_coloured('action', 'action')}"]
    for window in samples:
        lines += [f"  {line}" for line in _sample_lines(window, windows.domain.vocabulary)]
    return lines, ""


def any_length(config: DomainConfig) -> DomainConfig:
    """The config with room for every text."""
    return dataclasses.replace(config, max_text=_MOST_TOKENS, max_answer=_MOST_TOKENS)


def windows_of(store: Store, config: DomainConfig, specs: DomainSpecs | None, split: str, image_size: int,
               tokenizer: str = "bytes") -> Windows:
    """The windows of a data set as the only domain of a run, with the vocabulary of its own specs.

    Raises:
        ValueError: a field is missing or of a wrong type, or a label is negative.
    """
    declared = [spec.to_dict() for spec in specs.specs] if specs else []
    blocks = tuple(dict.fromkeys(spec["block"] for spec in declared))
    vocabulary = Vocabulary.build(tokenizer, vocabulary_blocks(blocks, declared))
    windows = Windows(Domain.from_config("data", 0, config, store, vocabulary, image_size, specs), store, split)
    if config.layout == "label":
        check_labels(windows, int(windows.labels.max(initial=0)) + 1)  # refuses labels below 0
    return windows


def _sample_lines(window: Window, vocabulary: Vocabulary) -> list[str]:
    text = vocabulary.text.decode([int(i) for i in window.text_ids[1:]])
    lines = textwrap.wrap(f"</s> {text}", 110) or ["</s>"]
    for step in window.steps:
        images = _coloured(" ".join("▣" for _ in step.frames), "image")
        parts = [_coloured(" ".join(vocabulary.token(int(i)) for i in ids), kind)
                 for ids, kind in ((step.state_ids, "state"), (step.action_ids, "action")) if len(ids)]
        weight = "" if window.prompt or step.action_weight == 1 else f"  (weight {step.action_weight:g})"
        lines.append(f"  {images}  {'  '.join(parts)}{weight}")
    if window.prompt:
        answer = vocabulary.text.decode([int(i) for i in window.answer_ids[:-1]])
        lines.append(f"  answer: {answer}" if window.label < 0 else f"  class {window.label}")
    return lines


def _coloured(text: str, kind: str) -> str:
    in_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return f"{_COLOURS[kind]}{text}\x1b[0m" if in_colour else text
