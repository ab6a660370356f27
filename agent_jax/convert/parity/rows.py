"""The rows of the parity check: random samples of every domain, with legal ids.

row 0      one sample of the first domain, of two steps
row 1 ...  two samples of one step, packed: of the first and the second domain, the third and the fourth ...
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agent_jax.actions import BoundSpec
from agent_jax.actions.text_tokenizer import EOS
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.batch import Batch, RowSize
from agent_jax.config import ModelConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Step, Window, lay_out, stack, window_usage

SEED = 0
WORDS = (3, 8)  # minimum and maximum ids of an instruction, so that lengths differ in a batch

_NO_IDS = np.zeros(0, np.int32)


def parity_rows(model: ModelConfig, vocabulary: Vocabulary, domains: Mapping[str, Domain],
                visual_tokens: int) -> tuple[list[list[Window]], Batch]:
    """The samples of each row, and the rows laid out.

    Args:
        model: sizes.
        vocabulary: of the texts.
        domains: of the samples; if empty, a sample is a text and an image.
        visual_tokens: V, visual tokens of an image.
    """
    random, size = np.random.default_rng(SEED), model.vision.image_size
    several = sorted(domains.values(), key=lambda domain: domain.index)
    first, *rest = several or [None]
    packed = first is None or first.layout != "label"  # a sample with a label has its own row
    contents = [[(first, 2), (first, 1)] if packed else [(first, 2)], *([(domain, 2)] for domain in rest)]
    rows = [[_sample(random, domain, steps, size, vocabulary, model.classes) for domain, steps in row]
            for row in contents]
    usages = [[window_usage(window, visual_tokens) for window in row] for row in rows]
    frames, slots, targets = (max(sum(getattr(usage, name) for usage in row) for row in usages)
                              for name in ("frames", "slots", "targets"))
    row_size = RowSize(frames, size, slots, targets)
    return rows, stack([lay_out(row, row_size, visual_tokens, model.vision.patches) for row in rows])


def _sample(random: np.random.Generator, domain: Domain | None, steps: int, size: int, vocabulary: Vocabulary,
            classes: int) -> Window:
    seed = int(random.integers(2**32))
    words = int(random.integers(*WORDS, endpoint=True))
    words = words if domain is None else max(0, min(words, domain.max_text - 1))
    text_ids = np.asarray([EOS, *random.integers(4, vocabulary.text.size, words)], np.int32)
    if domain is None:
        return Window(0, text_ids, (Step((_image(random, size),), _NO_IDS, _NO_IDS),), seed)
    window = tuple(Step(tuple(_image(random, size) for _ in domain.cameras),
                        _legal_ids(random, domain.state), _legal_ids(random, domain.spec))
                   for _ in range(min(steps, domain.image_steps(domain.window))))
    length = min(WORDS[1], domain.max_answer) - 1
    answer_ids = np.asarray([*random.integers(4, vocabulary.text.size, max(0, length)), EOS], np.int32)
    return Window(domain.index, text_ids, window, seed, video=domain.video, first_position=domain.first_position,
                  prompt=domain.layout != "actions", answer_ids=answer_ids if domain.layout == "answer" else _NO_IDS,
                  label=int(random.integers(classes)) if domain.layout == "label" else -1)


def _image(random: np.random.Generator, size: int) -> np.ndarray:
    """Blobs with noise, whose statistics are closer to a photograph's than noise alone."""
    coarse = random.integers(0, 256, (4, 4, 3)).repeat(-(-size // 4), axis=0).repeat(-(-size // 4), axis=1)
    return np.clip(coarse[:size, :size] + random.normal(0, 20, (size, size, 3)), 0, 255).astype(np.uint8)


def _legal_ids(random: np.random.Generator, bound: BoundSpec | None) -> np.ndarray:
    """A random walk through the automaton."""
    if bound is None:
        return _NO_IDS
    automaton, ids = bound.automaton, []
    state = automaton.start
    while state != automaton.accept:
        ids.append(int(random.choice(automaton.legal(state))))
        state = automaton.advance(state, ids[-1])
    return np.asarray(ids, np.int32)
