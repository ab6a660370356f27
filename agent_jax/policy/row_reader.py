"""Encoder and language model as a policy runs them: images to visual tokens, rows to their last hidden state.

Acting (decoder.py) and text generation (text_decoder.py) compile these together with their decoding loops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from agent_jax.config import Config
from agent_jax.models.agent import Agent, Params
from agent_jax.models.compute import Compute
from agent_jax.models.language import KVCache, LanguageModel, VisibleCache
from agent_jax.runtime.compiler_options import compiler_options


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What is to be read of each row: slots as in `Batch`, at the front of C places; NumPy arrays."""

    token_BC: Any  # int32; 0 where the slot is visual
    visual_BC: Any  # int32, into the visual tokens of the row; -1 where the slot is a token
    position_BC: Any  # int32
    count_B: Any  # int32: how many slots
    used_B: Any  # int32: how many were read before
    # Of rows that end in an action, by choice J among the ids A of its automaton:
    noise_BJA: Any = None  # f32, added to the logits: 0, or temperature times Gumbel's noise, which samples
    taught_BJ: Any = None  # int32: columns of A to be taken; -1: the best

    def next_position(self) -> jax.Array:
        """Position after the last slot of each row, int32 (B,)."""
        last_B1 = jnp.maximum(self.count_B - 1, 0)[:, None]
        return jnp.take_along_axis(self.position_BC, last_B1, axis=1)[:, 0] + 1


class RowReader:
    """Functions to be compiled, and the options to compile them with; holds no parameters."""

    def __init__(self, config: Config, *, video: bool) -> None:
        """Build the modules.

        Args:
            config: of a run; `model.language.vocabulary_size` is set.
            video: the images of a row are clips, one a camera.
        """
        model = config.model
        if not video:  # temporal attention is off where an image is a clip of its own, so need not be computed
            model = dataclasses.replace(model, vision=dataclasses.replace(model.vision, temporal_attention=False))
        device = jax.local_devices()[0]
        # The kernels of other platforms have not been tried in acting, whose rows are few.
        attention = "cpu" if device.platform == "cpu" else "xla"
        compute = Compute(jnp.dtype(model.dtype), scan=None, attention=attention)
        self.agent, self.language = Agent(model, compute), LanguageModel(model.language, compute)
        self.compiler_options = compiler_options(device, model.dtype, layers=model.language.depth)

    def encode(self, params: Params, frames_BFHWC: jax.Array, clip_BF: jax.Array) -> jax.Array:
        """Projected visual tokens (B, F, 1 + P, D)."""
        tokens: Any = self.agent.apply({"params": params}, frames_BFHWC, clip_BF, method="encode")
        return tokens

    def read(self, params: Params, visual_BGD: jax.Array, rows: Rows, past: Sequence[VisibleCache] = ()
             ) -> tuple[jax.Array, KVCache]:
        """Hidden state (B, D) of the last slot of each row, and keys and values of all."""
        language: Any = self.language.bind({"params": params["language"]})
        index_BC = jnp.clip(rows.visual_BC, 0, visual_BGD.shape[1] - 1)
        visual_BCD = jnp.take_along_axis(visual_BGD, index_BC[..., None], axis=1)
        x_BCD = jnp.where((rows.visual_BC >= 0)[..., None], visual_BCD, language.embed(rows.token_BC))
        return language.read(x_BCD, rows.position_BC, jnp.maximum(rows.count_B - 1, 0), past)
