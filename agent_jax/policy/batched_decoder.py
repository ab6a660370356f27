"""Turns of many environments, gathered into a few device calls of a few sizes.

    turns --encode--> visual tokens --filled up to the longest chunk--> read and say --> answers

Nothing is remembered here, and no answer is believed yet: that is the policy's.
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
from agent_jax.policy.constrained_decoder import Sampling
from agent_jax.policy.decoder import Decoder
from agent_jax.policy.decoding_tables import DecodingTables
from agent_jax.policy.history import Chunk, ChunkSizes, HistoryStep
from agent_jax.policy.observation import NO_IDS, Prepared
from agent_jax.policy.row_reader import Rows


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What one environment asks."""

    seen: Prepared
    chunk: Chunk
    noise_JA: np.ndarray | None  # f32, added to the logits; None: nothing
    taught_J: np.ndarray  # int32
    kept: Any = None  # keys and values of the slots before the chunk; given away where rows grow


@dataclasses.dataclass(frozen=True, eq=False)
class Response:
    """What it is told."""

    ids: np.ndarray  # int32
    logits_JA: np.ndarray  # f32 of each choice, -inf where an id is illegal or there was no choice
    sound: bool  # whether all logits were finite
    tokens: Any  # visual tokens of now; None in a video model
    kept: Any


class BatchedDecoder:
    """Reads and says, for one domain of one model."""

    def __init__(self, config: Config, domain: Domain, choices: DecodingTables, sizes: ChunkSizes, *,
                 grows: bool, ahead: bool):
        """Of a run's config.

        Args:
            config: `model.language.vocabulary_size` is set.
            domain: in which is acted.
            choices: tables of its automaton.
            sizes: of its rows.
            grows: every turn hands in keys and values, and gets them back with what was read now.
            ahead: turns may hand in what `read_ahead` made, which is not changed.
        """
        vision = config.model.vision
        self.clips = domain.video and vision.temporal_attention  # an image is encoded with those before it
        self._domain, self._choices, self._sizes, self._grows, self._ahead = domain, choices, sizes, grows, ahead
        self._decoder = Decoder(config, choices, video=self.clips)
        self._blank = jnp.zeros((len(domain.cameras) * (1 + vision.patches), config.model.language.width),
                                jnp.dtype(config.model.dtype))
        self._spare: list[Any] = []  # caches for the rows that fill up a bucket; those of `ahead` are one

    def answer(self, params: Params, turns: Sequence[Request]) -> list[Response]:
        """The answers, in the order of the turns; returns when they are computed."""
        visual = self._encode_clips(params, turns) if self.clips else self._encode_images(params, turns)
        waiting: list[tuple[Sequence[int], Any, Sequence[Any]]] = []
        numbers = range(len(turns))
        groups = [[n for n in numbers if (turns[n].kept is None) == anew] for anew in (False, True)]
        for part, rows in (one for group in groups for one in split(group)):
            size = max(self._sizes.fit(turns[number].chunk) for number in part)
            waiting.append((part, *self._say(params, turns, visual, part, rows, size)))
        answers: dict[int, Response] = {}
        for part, said, kept in waiting:
            ids_BI, length_B, logits_BJA, sound_B = jax.device_get(said)
            for row, number in enumerate(part):
                tokens = None if self.clips else visual[number][-1]
                answers[number] = Response(ids_BI[row, : length_B[row]], logits_BJA[row], bool(sound_B[row]), tokens,
                                         kept[row] if kept else None)
        return [answers[number] for number in range(len(turns))]

    def read_ahead(self, params: Params, chunks: Sequence[Chunk], tokens: Sequence[Sequence[Any]]) -> list[Any]:
        """Keys and values of chunks that begin their rows, each with the visual tokens of its steps.

        Returns while they are being computed.
        """
        found: list[Any] = []
        for part, rows in split(range(len(chunks))):
            steps, slots = max(self._sizes.fit(chunks[number]) for number in part)
            found += self._decoder.read_ahead(
                params, self._filled_up([tokens[number] for number in part], rows, steps),
                laid_out([chunks[number] for number in part], rows, slots), slots=self._sizes.cache)[: len(part)]
        return found

    def warm_up(self, params: Params, most: int) -> None:
        """Compile, and run once, whatever up to `most` turns can need."""
        domain, vision = self._domain, (self._domain.image_size,) * 2
        frames = (np.zeros((*vision, 3), np.uint8),) * len(domain.cameras)
        past = HistoryStep(frames, self._blank, NO_IDS, NO_IDS)
        largest = next((size for size in BUCKETS if size >= most), BUCKETS[-1])
        for number, (steps, slots) in enumerate(self._sizes.chunks):
            ids_C = np.zeros(slots, np.int32)
            chunk = Chunk((past,) * (steps - 1), 0, 0, ids_C, ids_C - 1, ids_C)
            for rows in BUCKETS[: BUCKETS.index(largest) + 1]:
                # What follows on rows read ahead is always the least chunk.
                for cached in (True,) if self._grows else (False, True) if self._ahead and not number else (False,):
                    self.answer(params, [Request(Prepared(frames, NO_IDS, NO_IDS), chunk, None,
                                              self._choices.columns(None), self.blank_cache() if cached else None)
                                         for _ in range(rows)])
                if self._ahead and slots <= self._sizes.cache:
                    self.read_ahead(params, [chunk] * rows, [[self._blank] * steps] * rows)

    def blank_cache(self) -> Any:
        """Keys and values of an episode that begins."""
        return self._decoder.blank_cache(self._sizes.cache)

    def _encode_images(self, params: Params, turns: Sequence[Request]) -> list[tuple[Any, ...]]:
        """Visual tokens of the steps that each turn reads."""
        found: list[tuple[Any, ...]] = []
        for part, rows in split(turns):
            frames = np.stack([np.stack(turn.seen.frames) for turn in part])
            clips = np.arange(frames.shape[1])[None].repeat(len(part), axis=0)
            made = self._encoded(params, frames, clips, rows, steps=1)
            found += [(*(step.tokens for step in turn.chunk.past[turn.chunk.first :]), *new)
                      for turn, new in zip(part, made, strict=False)]
        return found

    def _encode_clips(self, params: Params, turns: Sequence[Request]) -> list[tuple[Any, ...]]:
        """The same of a video model, in which every image changes the encoding of those before it."""
        found: list[tuple[Any, ...]] = []
        for part, rows in split(turns):
            steps = max(self._sizes.fit(turn.chunk) for turn in part)[0]
            frames, clips = zip(*(self._clip(turn, steps) for turn in part), strict=True)
            found += self._encoded(params, np.stack(frames), np.stack(clips), rows, steps=steps)[: len(part)]
        return found

    def _clip(self, turn: Request, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Images of all steps of a turn, and their clips, filled up to `steps`."""
        cameras = len(self._domain.cameras)
        images = [image for step in (*turn.chunk.past, turn.seen) for image in step.frames]
        frames = np.zeros((steps * cameras, *images[0].shape), np.uint8)
        frames[: len(images)] = np.stack(images)
        clips = np.full(steps * cameras, PADDING_CLIP, np.int32)
        clips[: len(images)] = np.tile(np.arange(cameras), len(images) // cameras)
        return frames, clips

    def _encoded(self, params: Params, frames: np.ndarray, clips: np.ndarray, rows: int, steps: int) -> Any:
        frames = np.concatenate([frames, np.zeros((rows - len(frames), *frames.shape[1:]), np.uint8)])
        clips = np.concatenate([clips, np.broadcast_to(clips[:1], (rows, clips.shape[1]))])[:rows]
        return self._decoder.encode(params, frames, clips.astype(np.int32), steps=steps)

    def _say(self, params: Params, turns: Sequence[Request], visual: Sequence[tuple[Any, ...]], part: Sequence[int],
             rows: int, size: tuple[int, int]) -> tuple[Any, Sequence[Any]]:
        """One device call for some turns of one size."""
        steps, slots = size
        tokens = self._filled_up([visual[number] for number in part], rows, steps)
        laid = laid_out([turns[number].chunk for number in part], rows, slots)
        noise_BJA = np.zeros((rows, self._choices.most, len(self._choices.automaton.ids_A)), np.float32)
        for row, number in enumerate(part):
            if (noise_JA := turns[number].noise_JA) is not None:
                noise_BJA[row] = noise_JA
        taught_BJ = filled([turns[number].taught_J for number in part], (rows, self._choices.most), -1)
        how = Sampling(noise_BJA, taught_BJ)
        kept = tuple(turns[number].kept for number in part)
        if kept[0] is None:  # then none of this part has any
            return self._decoder.decode(params, tokens, laid, how), ()
        if self._ahead:
            self._spare = self._spare or [self.blank_cache()]
            kept += (self._spare[0],) * (rows - len(part))
            return self._decoder.decode(params, tokens, laid, how, kept), ()
        spare = [self._spare.pop() if self._spare else self.blank_cache() for _ in range(rows - len(part))]
        said, kept = self._decoder.decode_after(params, tokens, laid, how, kept=(*kept, *spare))
        self._spare += kept[len(part) :]
        return said, kept[: len(part)]

    def _filled_up(self, tokens: Sequence[Sequence[Any]], rows: int, steps: int) -> tuple[tuple[Any, ...], ...]:
        """Visual tokens of some rows and steps, filled up to so many."""
        found = tuple((*row, *[self._blank] * (steps - len(row))) for row in tokens)
        return found + ((self._blank,) * steps,) * (rows - len(found))


def laid_out(chunks: Sequence[Chunk], rows: int, slots: int) -> Rows:
    """Chunks as rows of so many slots, filled up to so many rows."""
    return Rows(filled([chunk.token_C for chunk in chunks], (rows, slots), 0),
                filled([chunk.visual_C for chunk in chunks], (rows, slots), -1),
                filled([chunk.position_C for chunk in chunks], (rows, slots), 0),
                filled([len(chunk.token_C) for chunk in chunks], (rows,), 1),
                filled([chunk.used for chunk in chunks], (rows,), 0))
