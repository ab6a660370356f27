"""Generates text for clips and prompts, in one domain of the layout "answer".

    clips, prompts --prepare--> images, rows </s> prompt clip --TextDecoder--> ids --tokenizer--> texts

Rows are laid out by the code of training, so the model sees what it was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from agent_jax.actions.vocabulary import EOS
from agent_jax.batch import RowSize
from agent_jax.config import Config
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Step, Window, lay_out_prefix, row_size, window_usage
from agent_jax.models.agent import Params
from agent_jax.policy.arguments import check_temperature
from agent_jax.policy.buckets import filled, split
from agent_jax.policy.clips import Clip, batch_of, prepare_clip
from agent_jax.policy.observation import NO_IDS
from agent_jax.policy.row_reader import Rows
from agent_jax.policy.text_decoder import TextDecoder, TextSampling


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedText:
    """A text and how probable it is."""

    text: str
    ids: np.ndarray  # int32, without the </s> that ends it
    log_probability: float  # of all tokens and the </s>, among the text ids, at temperature 1
    complete: bool  # ended by </s>; False: cut off at the most tokens


class TextGenerator:
    """One domain of one model; holds no parameters."""

    def __init__(self, config: Config, domain: Domain) -> None:
        """Prepare; the first call compiles.

        Raises:
            ValueError: the longest row and answer do not fit into the model's positions.
        """
        vision = config.model.vision
        self._domain, self._visual_tokens = domain, 1 + vision.patches
        row_size([domain], self._visual_tokens, domain.images, config.model.language.positions)  # checks that it fits
        slots = domain.max_text + domain.images * self._visual_tokens
        # Images of one pixel: the device has the real ones.
        self._size = RowSize(frames=domain.images, image_size=1, slots=-(-slots // 8) * 8, targets=1)
        self._decoder = TextDecoder(config, text_size=domain.vocabulary.text.size, longest=domain.max_answer,
                                    video=domain.video and vision.temporal_attention)

    def __call__(self, params: Params, images: Sequence[Clip], prompts: Sequence[str], *, max_tokens: int = 0,
                 temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> list[GeneratedText]:
        """One text for each clip and prompt; `Policy.say` describes the arguments and errors."""
        domain = self._domain
        if not 0 <= max_tokens <= domain.max_answer:
            raise ValueError(f"say: max_tokens={max_tokens}: domain {domain.name!r} was trained on answers of at most "
                             f"{domain.max_answer} tokens with </s>; expected 1 to {domain.max_answer}, or 0 for that")
        check_temperature(temperature)
        if not 0 < top_p <= 1:
            raise ValueError(f"say: top_p={top_p}: expected more than 0, and at most 1 (all tokens)")
        clips = [prepare_clip(domain, clip, "say") for clip in images]
        texts = [self._prompt_ids(prompt) for prompt in prompts]
        found: list[GeneratedText] = []
        for numbers, rows in split(range(len(clips))):
            seeds = [np.random.SeedSequence([seed, number]).generate_state(1)[0] for number in numbers]
            how = TextSampling(np.float32(temperature), np.float32(top_p), filled(seeds, (rows,), 0, np.uint32),
                               np.full(rows, max_tokens or domain.max_answer, np.int32))
            frames_BFHWC, clip_BF = batch_of(domain, [clips[number] for number in numbers], rows)
            laid = self._rows([texts[number] for number in numbers], [len(clips[number]) for number in numbers], rows)
            decoded = jax.device_get(self._decoder.decode(params, frames_BFHWC, clip_BF, laid, how))
            found += [self._text(decoded, row, number) for row, number in enumerate(numbers)]
        return found

    def _prompt_ids(self, prompt: Any) -> np.ndarray:
        if not isinstance(prompt, str):
            raise ValueError(f"say: found a prompt of type {type(prompt).__name__}, expected a text (str)")
        return self._domain.text_ids(prompt)

    def _rows(self, texts: Sequence[np.ndarray], images: Sequence[int], rows: int) -> Rows:
        """The rows up to their answers, filled up."""
        domain, cameras = self._domain, len(self._domain.cameras)
        pixel = (np.zeros((1, 1, 3), np.uint8),) * cameras
        laid, slots = [], []
        for text, count in zip(texts, images, strict=True):
            steps = tuple(Step(pixel, NO_IDS, NO_IDS) for _ in range(count // cameras))
            window = Window(domain.index, text, steps, seed=0, video=domain.video,
                            first_position=domain.first_position, prompt=True)
            laid.append(lay_out_prefix(window, self._size, self._visual_tokens, self._visual_tokens - 1))
            slots.append(window_usage(window, self._visual_tokens).slots)
        token_BC, visual_BC, position_BC = (
            filled([row[name] for row in laid], (rows, self._size.slots), padding)
            for name, padding in (("token_BS", 0), ("visual_BS", -1), ("position_BS", 0)))
        return Rows(token_BC, visual_BC, position_BC, filled(slots, (rows,), 1), np.zeros(rows, np.int32))

    def _text(self, decoded: Any, row: int, number: int) -> GeneratedText:
        if not decoded.finite_B[row]:
            raise ValueError(f"say: the model's logits for prompt {number} are NaN or infinite, expected finite "
                             "numbers: its parameters are damaged or their training diverged; load another step")
        ids = decoded.ids_BY[row, : decoded.length_B[row]]
        complete = bool(ids[-1] == EOS)
        ids = ids[:-1] if complete else ids
        text = self._domain.vocabulary.text.decode(ids.tolist())
        return GeneratedText(text, ids, float(decoded.log_probability_B[row]), complete)
