"""Images to visual tokens, and rows to actions: what acting does on the device, compiled.

    images --encode--> visual tokens, kept for as long as the step is remembered
    row of tokens and visual tokens --read--> hidden state of its last slot --ActionLoop--> ids of the action

The whole action is one call. A row is read anew (`decode`), or only what is new of it, after the keys and values of the
rest (`decode_after`). Dimensions: B rows, C slots to be read; see batch.py for others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from agent_jax.acting.action_loop import ActionLoop, HowToChoose, Said
from agent_jax.acting.choices import Choices
from agent_jax.config import Config
from agent_jax.models.agent import Agent, Params
from agent_jax.models.cached import CachedLanguage, KeysValues, Past

Tokens = jax.Array  # (cameras * V, D): the visual tokens of one step
Visual = tuple[tuple[Tokens, ...], ...]  # of each row, the steps to be read
Kept = tuple[jax.Array, jax.Array]  # keys and values (L, N, Z, H) of one episode


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What is to be read of each row: slots as in `Batch`, at the front of C places; NumPy arrays."""

    token_BC: Any  # int32; 0 where the slot is visual
    visual_BC: Any  # int32, into the visual tokens of the row's steps; -1 where the slot is a token
    position_BC: Any  # int32
    count_B: Any  # int32: how many slots
    used_B: Any  # int32: how many were read before


class Decoder:
    """The compiled functions of one model and one automaton; holds no parameters."""

    def __init__(self, config: Config, choices: Choices, *, video: bool):
        """Of a run's config.

        Args:
            config: `model.language.vocabulary_size` is set.
            choices: tables of an automaton that has a choice.
            video: the images of a row are clips, one a camera.
        """
        model = config.model
        if not video:  # temporal attention is off where an image is a clip of its own, so need not be computed
            model = dataclasses.replace(model, vision=dataclasses.replace(model.vision, temporal_attention=False))
        self._agent, self._language = Agent(model), CachedLanguage(model)
        self._say = ActionLoop(self._language, choices)
        self.encode = jax.jit(self._encode, static_argnames="steps")
        self.decode = jax.jit(self._decode)
        self.decode_after = jax.jit(self._decode_after, donate_argnames="kept")

    def blank_cache(self, slots: int) -> Kept:
        """Keys and values of nothing, for an episode of up to `slots` slots."""
        cache = self._language.blank(1, slots)
        return cache.k_LBNZH[:, 0], cache.v_LBNZH[:, 0]

    def _encode(self, params: Params, frames_BFHWC: jax.Array, clip_BF: jax.Array, steps: int) -> Visual:
        """Projected visual tokens by row and step, of images in the order of steps, then cameras."""
        tokens: Any = self._agent.apply({"params": params}, frames_BFHWC, clip_BF, method="encode")
        rows, _, _, width = tokens.shape
        split = tokens.reshape(rows, steps, -1, width)
        return tuple(tuple(split[row, step] for step in range(steps)) for row in range(rows))

    def _decode(self, params: Params, visual: Visual, rows: Rows, how: HowToChoose) -> Said:
        """Read rows from their beginning and say their actions."""
        hidden_BD, cache = self._read(params, visual, rows, ())
        seen_BZ = jnp.arange(rows.token_BC.shape[1])[None] < rows.count_B[:, None]
        return self._say(params["language"], hidden_BD, Past(cache, seen_BZ), _after(rows), how)

    def _decode_after(self, params: Params, visual: Visual, rows: Rows, how: HowToChoose, kept: tuple[Kept, ...]
                      ) -> tuple[Said, tuple[Kept, ...]]:
        """Read what is new of rows and say their actions; returns the caches with what was read now as well."""
        cache = KeysValues(*(jnp.stack(part, axis=1) for part in zip(*kept, strict=True)))
        slot_1Z = jnp.arange(cache.k_LBNZH.shape[3])[None]
        hidden_BD, new = self._read(params, visual, rows, (Past(cache, slot_1Z < rows.used_B[:, None]),))

        def insert(row: jax.Array, cache: KeysValues) -> KeysValues:
            def put(whole: jax.Array, part: jax.Array) -> jax.Array:
                part = jax.lax.dynamic_slice_in_dim(part, row, 1, axis=1)
                return jax.lax.dynamic_update_slice(whole, part, (0, row, 0, rows.used_B[row], 0))

            return jax.tree.map(put, cache, new)

        cache = jax.lax.fori_loop(0, len(kept), insert, cache)
        past = Past(cache, slot_1Z < (rows.used_B + rows.count_B)[:, None])
        said = self._say(params["language"], hidden_BD, past, _after(rows), how)
        return said, tuple((cache.k_LBNZH[:, row], cache.v_LBNZH[:, row]) for row in range(len(kept)))

    def _read(self, params: Params, visual: Visual, rows: Rows, past: tuple[Past, ...]
              ) -> tuple[jax.Array, KeysValues]:
        """hidden_BD of the last slot of each row, and keys and values of what was read."""
        language = params["language"]
        visual_BGD = jnp.stack([jnp.concatenate(steps) for steps in visual])
        index_BC = jnp.clip(rows.visual_BC, 0, visual_BGD.shape[1] - 1)
        visual_BCD = jnp.take_along_axis(visual_BGD, index_BC[..., None], axis=1)
        x_BCD = jnp.where((rows.visual_BC >= 0)[..., None], visual_BCD, self._language.embed(language, rows.token_BC))
        return self._language.read(language, x_BCD, rows.position_BC, jnp.maximum(rows.count_B - 1, 0), past)


def _after(rows: Rows) -> jax.Array:
    """Position after the last slot of each row."""
    last_B1 = jnp.maximum(rows.count_B - 1, 0)[:, None]
    return jnp.take_along_axis(rows.position_BC, last_B1, axis=1)[:, 0] + 1
