"""OPT (Zhang et al., 2022), the pre-LayerNorm sizes, over a row that is already embedded.

Token embeddings are tied to the vocabulary projection; learned positions start at row 2, as in the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from agent_jax.config import LanguageConfig
from agent_jax.models.attention import LayerCache, VisibleLayer
from agent_jax.models.compute import Compute
from agent_jax.models.transformer import BlockConfig, Collect, layer_norm, run_blocks

POSITION_OFFSET = 2  # OPT keeps two rows of the table unused


KVCache = tuple[LayerCache, ...]  # of all layers, the first one first


class VisibleCache(NamedTuple):
    """What was read before, and which slots of it each row sees."""

    cached: KVCache
    visible_BZ: jax.Array


class LanguageModel(nn.Module):
    """OPT's decoder with its embedding table: `embed`, the blocks, `logits`; and `read` for acting."""

    config: LanguageConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        """The tables, shared by `embed` and `logits`."""
        c = self.config
        normal = nn.initializers.normal
        self.token_embedding = self.param(
            "token_embedding", normal(c.token_std), (c.vocabulary_rows, c.width), jnp.float32)
        self.position_embedding = self.param(
            "position_embedding", normal(c.position_std), (c.positions + POSITION_OFFSET, c.width), jnp.float32)

    def embed(self, token_BS: jax.Array) -> jax.Array:
        """Token embeddings (B, S, D) in the compute dtype."""
        return jnp.take(self.token_embedding, token_BS, axis=0, mode="clip").astype(self.compute.dtype)

    @nn.compact
    def __call__(
        self,
        x_BSD: jax.Array,
        position_BS: jax.Array,
        segment_BS: jax.Array,
        keys_B: jax.Array | None = None,
        *,
        past: Sequence[VisibleCache] = (),
        last_B: jax.Array | None = None,
        collect: Collect = None,
    ) -> tuple[jax.Array, Any]:
        """Hidden states of a row.

        Args:
            x_BSD: embedded slots: tokens and visual tokens.
            position_BS: position of each slot in its sample, from 0.
            segment_BS: sample of each slot; slots see earlier slots of their own sample.
            keys_B: dropout keys; None: no dropout.
            past: what was read before these slots, all of one sample; all of them see it. See `read`.
            last_B: the one slot of each row whose hidden state (B, 1, D) is wanted; None: all.
            collect: what to return of every block.

        Returns:
            hidden_BSD after the final norm; and what is collected: hidden states (1 + L, B, S, D), which are the
            embedded row with positions and the output of every block, or keys and values, a list of LayerCache.
        """
        c = self.config
        position_BSD = jnp.take(self.position_embedding, position_BS + POSITION_OFFSET, axis=0, mode="clip")
        x = first = x_BSD + position_BSD.astype(self.compute.dtype)
        block = BlockConfig(c.width, c.heads, c.mlp_width, c.activation, c.layer_norm_eps, c.dropout)
        by_layer = [[VisibleLayer(part.cached[layer], part.visible_BZ) for part in past] for layer in range(c.depth)]
        x, collected = run_blocks(block, self.compute, c.depth, x, segment_BS, keys_B, past=by_layer if past else (),
                                  last_B=last_B, collect=collect, spatial=self.compute.patterns.causally)
        if collect == "hidden":
            collected = jnp.concatenate([first[None], collected])
        return layer_norm(c.layer_norm_eps, self.compute.dtype, name="final_norm")(x), collected

    def read(self, x_BCD: jax.Array, position_BC: jax.Array, last_B: jax.Array, past: Sequence[VisibleCache] = ()
             ) -> tuple[jax.Array, KVCache]:
        """Read a chunk of each row after what was read before: acting's way through the blocks.

            read before (keys, values)       chunk
            [b w w v v v v v a a a a . . .]  [v v v v v s s s s a . .]    . not seen, or read without effect
                                              every slot sees the past and the chunk up to itself

        Args:
            x_BCD: embedded slots, those of a row at its front.
            position_BC: position of each slot in its sample.
            last_B: the slot of each row whose hidden state is returned; what follows it is read without effect.
            past: what all slots of the chunk see before it.

        Returns:
            hidden_BD of those slots after the final norm, and keys and values of the chunk.
        """
        ones_BC = jnp.ones(x_BCD.shape[:2], jnp.int32)
        hidden_B1D, collected = self(x_BCD, position_BC, ones_BC, past=past, last_B=last_B, collect="keys_values")
        return hidden_B1D[:, 0], tuple(collected)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """logits_BTK in f32; rows of the table beyond the vocabulary get -inf."""
        B, T, D = hidden_BTD.shape
        hidden_XD = hidden_BTD.reshape(B * T, D)
        logits_XK = self.compute.matmul(hidden_XD, self.token_embedding, self.compute.f32, transposed=True)
        real_K = jnp.arange(self.config.vocabulary_rows) < self.config.vocabulary_size
        return jnp.where(real_K[None, None], logits_XK.reshape(B, T, -1), -jnp.inf)

    def logits_of(self, hidden_BD: jax.Array, ids_A: jax.Array) -> jax.Array:
        """logits_BA, in f32, of the given ids alone: a choice among legal ids needs no others."""
        table_AD = jnp.take(self.token_embedding, ids_A, axis=0)
        return self.compute.matmul(hidden_BD, table_AD, self.compute.f32, transposed=True)

    def blank_cache(self, rows: int, slots: int) -> KVCache:
        """A cache of zeros; holds no parameters."""
        c = self.config
        blank_BNZH = jnp.zeros((rows, c.heads, slots, c.width // c.heads), self.compute.dtype)
        return (LayerCache(blank_BNZH, blank_BNZH),) * c.depth
