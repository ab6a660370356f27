"""Texts and classes: answers prompts about clips, and classifies clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent_jax.convert.exported.domain import EOS, Domain
from agent_jax.convert.exported.network import Network, check_finite
from agent_jax.convert.exported.row import lay_out_row, stack_frames


@dataclass(frozen=True)
class GeneratedText:
    """An answer of the model."""

    text: str
    ids: list[int]  # without the </s> that ended it
    log_probability: float  # in nats, among the text ids, at temperature 1; of all generated ids, the final </s> too
    complete: bool  # it ended by </s>, not by `max_tokens`


@dataclass(frozen=True)
class Classification:
    """The class of a clip."""

    label: int  # the most probable class
    probabilities: np.ndarray  # f32 (classes,)


class Prompted(Network):
    """Answers prompts and classifies clips, without history."""

    def say(self, images: Sequence[Any], prompts: Sequence[str], *, domain: str = "", max_tokens: int = 0,
            temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> list[GeneratedText]:
        """Answer each prompt about its images; no history is read or written.

        Args:
            images: for each prompt an image uint8 (height, width, 3), or a sequence of 1 to `window` of them; with
                several cameras, a mapping by their names or a tuple in their order in place of an image.
            prompts: texts.
            domain: of the layout "answer"; may be empty if the policy has it, or if there is only one.
            max_tokens: of an answer, </s> included; 0: the domain's `max_answer`, which is the most.
            temperature: of sampling; 0: the most probable id.
            top_p: sample among the fewest most probable ids whose probabilities reach this sum; 1: all.
            seed: of sampling; what is drawn depends on it and on the prompt's number alone.

        Returns:
            One text for each prompt. Ids of actions and states are never generated.

        Raises:
            ValueError: a domain without text, another number of images than prompts, a prompt that is too long, a
                wrong clip, a setting out of range, or logits that are not finite.
        """
        chosen = self._of_layout(domain, "answer")
        _check_sampling(chosen, temperature, top_p, max_tokens)
        if isinstance(prompts, str) or len(images) != len(prompts):
            found = "one text" if isinstance(prompts, str) else f"{len(prompts)} prompts"
            raise ValueError(f"found {len(images)} clips and {found}, expected a clip (an image or several) for each "
                             "prompt: say([clip], [prompt])")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise ValueError(f"domain {chosen.name!r}: found the prompt {prompt!r}, expected a text")
        if not len(prompts):
            return []
        texts = [chosen.text_ids(prompt) for prompt in prompts]
        clips = [chosen.clip_images(given) for given in images]
        random = [np.random.default_rng([seed, number]) for number in range(len(prompts))]
        log_probabilities = [0.0] * len(prompts)

        def choose(row: int, logits_K: np.ndarray) -> int:
            check_finite(logits_K)
            log_K = logits_K - logits_K.max()
            log_K -= np.log(np.exp(log_K).sum())
            token = sampled(log_K, temperature, top_p, random[row])
            log_probabilities[row] += float(log_K[token])
            return token

        said = []
        for ids, log_probability in zip(self.generate(chosen, texts, clips, max_tokens or chosen.max_answer, choose),
                                        log_probabilities, strict=True):
            complete = ids[-1] == EOS
            ids = ids[:-1] if complete else ids
            said.append(GeneratedText(chosen.text(ids), ids, log_probability, complete))
        return said

    def generate(self, domain: Domain, texts: Sequence[Sequence[int]], clips: Sequence[Sequence[Sequence[np.ndarray]]],
                 limit: int, choose: Any) -> list[list[int]]:
        """The ids after each prompt and clip, up to </s> or `limit` of them.

        Args:
            domain: of the layout "answer".
            texts: ids of the prompts.
            clips: prepared images by step and camera.
            limit: ids of an answer at most.
            choose: `choose(row, logits_K)` returns the next id by the logits of the text ids, f64.
        """
        tokens_BFVD, rows = self._tokens(*stack_frames(domain, clips)), []
        for text, clip, tokens_FVD in zip(texts, clips, tokens_BFVD, strict=True):
            cameras = len(clip[0])
            visual = [[tokens_FVD[step * cameras + camera, 1 if domain.video and step else 0 :]
                       for camera in range(cameras)] for step in range(len(clip))]
            rows.append(lay_out_row(domain, text, visual, [[]] * len(clip)))
        reading = self._read(rows, np.arange(domain.text_ids_end), limit - 1)
        logits_BK = next(reading)
        ids: list[list[int]] = [[] for _ in texts]
        going = [True] * len(texts)
        while True:
            for i, found in enumerate(ids):
                if going[i]:
                    found.append(choose(i, logits_BK[i].astype(np.float64)))
                    going[i] = found[-1] != EOS and len(found) < limit
            if not any(going):
                return ids
            logits_BK = reading.send([found[-1:] if on else [] for found, on in zip(ids, going, strict=True)])

    def classify(self, images: Sequence[Any], *, domain: str = "") -> list[Classification]:
        """The class of each clip.

        Args:
            images: for each clip an image uint8 (height, width, 3), or a sequence of 1 to `window` of them.
            domain: of the layout "label"; may be empty if the policy has it, or if there is only one.

        Raises:
            ValueError: a domain without classes, a wrong clip, or logits that are not finite.
        """
        chosen = self._of_layout(domain, "label")
        if not len(images):
            return []
        found = self._probabilities(*stack_frames(chosen, [chosen.clip_images(given) for given in images]))
        check_finite(found)
        return [Classification(int(row.argmax()), row) for row in found]


def sampled(log_K: np.ndarray, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """An id by its log-probabilities: the best one, or a sample among the top p (Holtzman et al., 2019)."""
    if not temperature:
        return int(np.argmax(log_K))
    odds_K = np.exp((log_K - log_K.max()) / temperature)
    order_K = np.argsort(-odds_K, kind="stable")
    sums_K = np.cumsum(odds_K[order_K] / odds_K.sum())
    kept = order_K[: 1 + np.searchsorted(sums_K, top_p)]
    return int(random.choice(kept, p=odds_K[kept] / odds_K[kept].sum()))


def _check_sampling(domain: Domain, temperature: float, top_p: float, max_tokens: int) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature}: expected 0 (the most probable id) or more, and finite")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: expected above 0 and at most 1 (all ids)")
    if not 0 <= max_tokens <= domain.max_answer:
        raise ValueError(f"max_tokens={max_tokens}: domain {domain.name!r} was trained on answers of at most "
                         f"{domain.max_answer} tokens with </s>; expected 1 to {domain.max_answer}, or 0 for that")
