"""Requests of many environments, gathered into a few device calls of a few sizes.

    requests --encode--> visual tokens --filled up to the longest one--> read and decode --> responses

No episode changes here, and no response is checked yet: the caller does both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.batch import PADDING_CLIP
from agent_jax.config import Config
from agent_jax.data.pipeline.domains import Domain
from agent_jax.models.agent import Params
from agent_jax.policy.buckets import BUCKETS, filled, split
from agent_jax.policy.decoder import Decoder
from agent_jax.policy.decoding_tables import DecodingTables
from agent_jax.policy.history import ChunkSizes, HistoryStep, Request
from agent_jax.policy.observation import NO_IDS, Prepared
from agent_jax.policy.row_reader import Rows


@dataclasses.dataclass(frozen=True, eq=False)
class Response:
    """The decoded action of one environment."""

    ids: np.ndarray  # int32
    logits_JA: np.ndarray  # f32 of each choice, -inf where an id is illegal or there was no choice
    sound: bool  # whether all logits were finite
    tokens: Any  # visual tokens of now; None in a video model
    kept: Any


class BatchedDecoder:
    """Batched decoding of actions, for one domain of one model."""

    def __init__(self, config: Config, domain: Domain, choices: DecodingTables, sizes: ChunkSizes, *,
                 grows: bool, ahead: bool):
        """Of a run's config.

        Args:
            config: `model.language.vocabulary_size` is set.
            domain: in which is acted.
            choices: tables of its automaton.
            sizes: of its rows.
            grows: every request has keys and values, and its response has them with what was read now.
            ahead: requests may have what `read_ahead` made, which is not changed.
        """
        vision = config.model.vision
        self.clips = domain.video and vision.temporal_attention  # an image is encoded with those before it
        self._domain, self._choices, self._sizes, self._grows, self._ahead = domain, choices, sizes, grows, ahead
        self._decoder = Decoder(config, choices, video=self.clips)
        self._blank = jnp.zeros((len(domain.cameras) * (1 + vision.patches), config.model.language.width),
                                jnp.dtype(config.model.dtype))
        self._spare: list[Any] = []  # caches for the rows that fill up a bucket; those of `ahead` are one

    def answer(self, params: Params, requests: Sequence[Request]) -> list[Response]:
        """The answers, in the order of the requests; returns when they are computed."""
        visual = self._encode_clips(params, requests) if self.clips else self._encode_images(params, requests)
        waiting: list[tuple[Sequence[int], Any, Sequence[Any]]] = []
        numbers = range(len(requests))
        groups = [[n for n in numbers if (requests[n].kept is None) == anew] for anew in (False, True)]
        for part, rows in (one for group in groups for one in split(group)):
            size = max(self._sizes.fit(requests[number]) for number in part)
            waiting.append((part, *self._say(params, requests, visual, part, rows, size)))
        answers: dict[int, Response] = {}
        for part, said, kept in waiting:
            ids_BI, length_B, logits_BJA, sound_B = jax.device_get(said)
            for row, number in enumerate(part):
                tokens = None if self.clips else visual[number][-1]
                answers[number] = Response(ids_BI[row, : length_B[row]], logits_BJA[row], bool(sound_B[row]), tokens,
                                         kept[row] if kept else None)
        return [answers[number] for number in range(len(requests))]

    def read_ahead(self, params: Params, requests: Sequence[Request]) -> list[Any]:
        """Keys and values of what requests of `request_ahead` read; returns while they are being computed."""
        found: list[Any] = []
        for part, rows in split(requests):
            steps, slots = max(map(self._sizes.fit, part))
            tokens = self._filled_up([[step.tokens for step in request.past] for request in part], rows, steps)
            found += self._decoder.read_ahead(params, tokens, self._rows(part, rows, slots),
                                              slots=self._sizes.cache)[: len(part)]
        return found

    def warm_up(self, params: Params, most: int) -> None:
        """Compile, and run once, whatever up to `most` requests can need."""
        domain, vision = self._domain, (self._domain.image_size,) * 2
        frames = (np.zeros((*vision, 3), np.uint8),) * len(domain.cameras)
        past = HistoryStep(frames, self._blank, NO_IDS, NO_IDS)
        largest = next((size for size in BUCKETS if size >= most), BUCKETS[-1])
        for number, (steps, slots) in enumerate(self._sizes.chunks):
            ids_C = np.zeros(slots, np.int32)
            ahead = Request((past,) * steps, None, 0, 0, ids_C, ids_C - 1, ids_C)
            request = dataclasses.replace(ahead, past=ahead.past[1:], seen=Prepared(frames, NO_IDS, NO_IDS))
            for rows in BUCKETS[: BUCKETS.index(largest) + 1]:
                # What follows on rows read ahead is always of the least size.
                for cached in (True,) if self._grows else (False, True) if self._ahead and not number else (False,):
                    self.answer(params, [dataclasses.replace(request, kept=self.blank_cache() if cached else None)
                                         for _ in range(rows)])
                if self._ahead and slots <= self._sizes.cache:
                    self.read_ahead(params, [ahead] * rows)

    def blank_cache(self) -> Any:
        """Keys and values of an episode that begins."""
        return self._decoder.blank_cache(self._sizes.cache)

    def _encode_images(self, params: Params, requests: Sequence[Request]) -> list[tuple[Any, ...]]:
        """Visual tokens of the steps that each request reads."""
        found: list[tuple[Any, ...]] = []
        for part, rows in split(requests):
            frames = np.stack([np.stack(request.frames) for request in part])
            clips = np.arange(frames.shape[1])[None].repeat(len(part), axis=0)
            made = self._encoded(params, frames, clips, rows, steps=1)
            found += [(*(step.tokens for step in request.past[request.first :]), *new)
                      for request, new in zip(part, made, strict=False)]
        return found

    def _encode_clips(self, params: Params, requests: Sequence[Request]) -> list[tuple[Any, ...]]:
        """The same of a video model, in which every image changes the encoding of those before it."""
        found: list[tuple[Any, ...]] = []
        for part, rows in split(requests):
            steps = max(self._sizes.fit(request) for request in part)[0]
            frames, clips = zip(*(self._clip(request, steps) for request in part), strict=True)
            found += self._encoded(params, np.stack(frames), np.stack(clips), rows, steps=steps)[: len(part)]
        return found

    def _clip(self, request: Request, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Images of all steps of a request, and their clips, filled up to `steps`."""
        cameras = len(self._domain.cameras)
        images = [image for step in (*request.past, request) for image in step.frames]
        frames = np.zeros((steps * cameras, *images[0].shape), np.uint8)
        frames[: len(images)] = np.stack(images)
        clips = np.full(steps * cameras, PADDING_CLIP, np.int32)
        clips[: len(images)] = np.tile(np.arange(cameras), len(images) // cameras)
        return frames, clips

    def _encoded(self, params: Params, frames: np.ndarray, clips: np.ndarray, rows: int, steps: int) -> Any:
        frames = np.concatenate([frames, np.zeros((rows - len(frames), *frames.shape[1:]), np.uint8)])
        clips = np.concatenate([clips, np.broadcast_to(clips[:1], (rows, clips.shape[1]))])[:rows]
        return self._decoder.encode(params, frames, clips.astype(np.int32), steps=steps)

    def _say(self, params: Params, requests: Sequence[Request], visual: Sequence[tuple[Any, ...]], part: Sequence[int],
             rows: int, size: tuple[int, int]) -> tuple[Any, Sequence[Any]]:
        """One device call for some requests of one size."""
        steps, slots = size
        tokens = self._filled_up([visual[number] for number in part], rows, steps)
        laid = self._rows([requests[number] for number in part], rows, slots)
        kept = tuple(requests[number].kept for number in part)
        if kept[0] is None:  # then none of this part has any
            return self._decoder.decode(params, tokens, laid), ()
        if self._ahead:
            self._spare = self._spare or [self.blank_cache()]
            kept += (self._spare[0],) * (rows - len(part))
            return self._decoder.decode(params, tokens, laid, kept), ()
        spare = [self._spare.pop() if self._spare else self.blank_cache() for _ in range(rows - len(part))]
        said, kept = self._decoder.decode_after(params, tokens, laid, kept=(*kept, *spare))
        self._spare += kept[len(part) :]
        return said, kept[: len(part)]

    def _filled_up(self, tokens: Sequence[Sequence[Any]], rows: int, steps: int) -> tuple[tuple[Any, ...], ...]:
        """Visual tokens of some rows and steps, filled up to so many."""
        found = tuple((*row, *[self._blank] * (steps - len(row))) for row in tokens)
        return found + ((self._blank,) * steps,) * (rows - len(found))

    def _rows(self, requests: Sequence[Request], rows: int, slots: int) -> Rows:
        """Requests as rows of so many slots, filled up to so many rows."""
        noise_BJA = np.zeros((rows, self._choices.most, len(self._choices.automaton.ids_A)), np.float32)
        taught_BJ = np.full(noise_BJA.shape[:2], -1, np.int32)
        for row, request in enumerate(requests):
            noise_BJA[row] = 0 if request.noise_JA is None else request.noise_JA
            taught_BJ[row] = -1 if request.taught_J is None else request.taught_J
        return Rows(filled([request.token_C for request in requests], (rows, slots), 0),
                    filled([request.visual_C for request in requests], (rows, slots), -1),
                    filled([request.position_C for request in requests], (rows, slots), 0),
                    filled([len(request.token_C) for request in requests], (rows,), 1),
                    filled([request.used for request in requests], (rows,), 0), noise_BJA, taught_BJ)
