"""Images to visual tokens, and rows to actions: what acting does on the device, compiled.

    images --encode--> visual tokens, kept for as long as the step is remembered
    row of tokens and visual tokens --read--> hidden state of its last slot --ActionLoop--> ids of the action

The whole action is one call. A row is read anew (`decode`), or only what is new of it, after the keys and values of the
rest: they grow with the row (`decode_after`), or were made by `read_ahead` and are left as they are (`decode`).
Dimensions: B rows, C slots to be read; see batch.py for others.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from agent_jax.config import Config
from agent_jax.models.agent import Params
from agent_jax.models.attention import LayerCache
from agent_jax.models.language import KVCache, VisibleCache
from agent_jax.policy.constrained_decoder import ConstrainedDecoder, DecodedActions
from agent_jax.policy.decoding_tables import DecodingTables
from agent_jax.policy.row_reader import RowReader, Rows

Tokens = jax.Array  # (cameras * V, D): the visual tokens of one step
Visual = tuple[tuple[Tokens, ...], ...]  # of each row, the steps to be read
Kept = tuple[tuple[jax.Array, jax.Array], ...]  # keys and values (N, Z, H) of one episode, layer by layer


class Decoder:
    """The compiled functions of one model and one automaton; holds no parameters."""

    def __init__(self, config: Config, choices: DecodingTables, *, video: bool):
        """Of a run's config.

        Args:
            config: `model.language.vocabulary_size` is set.
            choices: tables of an automaton that has a choice.
            video: the images of a row are clips, one a camera.
        """
        self._reader = RowReader(config, video=video)
        self._say = ConstrainedDecoder(self._reader.language, choices)
        jit: Any = functools.partial(jax.jit, compiler_options=self._reader.compiler_options)
        self.encode = jit(self._encode, static_argnames="steps")
        self.decode = jit(self._decode)
        self.read_ahead = jit(self._read_ahead, static_argnames="slots")
        self.decode_after = jit(self._decode_after, donate_argnames="kept")

    def blank_cache(self, slots: int) -> Kept:
        """Keys and values of nothing, for an episode of up to `slots` slots."""
        return _split(self._reader.language.blank_cache(1, slots))[0]

    def _encode(self, params: Params, frames_BFHWC: jax.Array, clip_BF: jax.Array, steps: int) -> Visual:
        """Projected visual tokens by row and step, of images in the order of steps, then cameras."""
        tokens = self._reader.encode(params, frames_BFHWC, clip_BF)
        rows, _, _, width = tokens.shape
        split = tokens.reshape(rows, steps, -1, width)
        return tuple(tuple(split[row, step] for step in range(steps)) for row in range(rows))

    def _decode(self, params: Params, visual: Visual, rows: Rows, kept: tuple[Kept, ...] = ()
                ) -> DecodedActions:
        """Read rows, or what is new of them after `kept`, and say their actions."""
        return self._read_and_say(params, visual, rows, kept)[0]

    def _read_ahead(self, params: Params, visual: Visual, rows: Rows, slots: int) -> tuple[Kept, ...]:
        """Read rows up to where what is seen next will follow: their keys and values, in caches of so many slots."""
        _, read = self._read(params, visual, rows)  # the compiler leaves out what only hidden states need
        more = slots - rows.token_BC.shape[1]
        return _split(jax.tree.map(lambda part: jnp.pad(part, ((0, 0), (0, 0), (0, more), (0, 0))), read))

    def _decode_after(self, params: Params, visual: Visual, rows: Rows, kept: tuple[Kept, ...]
                      ) -> tuple[DecodedActions, tuple[Kept, ...]]:
        """The same; returns the caches with what was read now as well."""
        said, new = self._read_and_say(params, visual, rows, kept)

        def grown(row: int) -> Kept:
            return jax.tree.map(lambda whole_NZH, part_NCH: _written(whole_NZH, part_NCH, rows.used_B[row]),
                                kept[row], _split(new)[row])

        return said, tuple(grown(row) for row in range(len(kept)))

    def _read_and_say(self, params: Params, visual: Visual, rows: Rows, kept: tuple[Kept, ...]
                      ) -> tuple[DecodedActions, KVCache]:
        """Actions, and keys and values of what was read now."""
        past = ()
        if kept:
            cache = _stacked(kept)
            slot_1Z = jnp.arange(cache[0].k_BNZH.shape[2])[None]
            past = (VisibleCache(cache, slot_1Z < rows.used_B[:, None]),)
        hidden_BD, new = self._read(params, visual, rows, past)
        new_BZ = jnp.arange(rows.token_BC.shape[1])[None] < rows.count_B[:, None]
        past = (*past, VisibleCache(new, new_BZ))
        return self._say(params["language"], hidden_BD, past, rows), new

    def _read(self, params: Params, visual: Visual, rows: Rows, past: Sequence[VisibleCache] = ()
              ) -> tuple[jax.Array, KVCache]:
        """Hidden state of the last slot of each row, and keys and values of all."""
        visual_BGD = jnp.stack([jnp.concatenate(steps) for steps in visual])
        return self._reader.read(params, visual_BGD, rows, past)


def _stacked(kept: tuple[Kept, ...]) -> KVCache:
    """Caches of one episode each, as rows."""
    return tuple(LayerCache(*map(jnp.stack, zip(*layer, strict=True))) for layer in zip(*kept, strict=True))


def _split(cache: KVCache) -> tuple[Kept, ...]:
    rows = range(len(cache[0].k_BNZH))
    return tuple(tuple((layer.k_BNZH[row], layer.v_BNZH[row]) for layer in cache) for row in rows)


def _written(whole_NZH: jax.Array, part_NCH: jax.Array, used: jax.Array) -> jax.Array:
    """Keys or values with a chunk written behind the first `used`; of the chunk's filling, what has no room is dropped.

    XLA shifts an update that reaches beyond the end, so that it would overwrite slots read before. Here the update
    begins there itself, with what these slots hold.
    """
    slots = part_NCH.shape[1]
    start = jnp.minimum(used, whole_NZH.shape[1] - slots)
    there_NCH = jax.lax.dynamic_slice_in_dim(whole_NZH, start, slots, axis=1)
    is_there_C = jnp.arange(slots) < used - start
    update_NCH = jnp.where(is_there_C[:, None], there_NCH, jnp.roll(part_NCH, used - start, axis=1))
    return jax.lax.dynamic_update_slice_in_dim(whole_NZH, update_NCH, start, axis=1)
