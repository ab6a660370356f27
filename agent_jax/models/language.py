"""OPT (Zhang et al., 2022), the pre-LayerNorm sizes, over a row that is already embedded.

Token embeddings are tied to the vocabulary projection; learned positions start at row 2, as in the published weights.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from agent_jax.config import LanguageConfig
from agent_jax.models.attention_kernels import KERNELS
from agent_jax.models.cpu.matmul import product
from agent_jax.models.transformer import BlockConfig, LayerNorm, run_blocks

POSITION_OFFSET = 2  # OPT keeps two rows of the table unused


class LanguageModel(nn.Module):
    """OPT's decoder with its embedding table, in three methods that the agent calls in order."""

    config: LanguageConfig
    dtype: jnp.dtype
    remat: str = "none"
    unroll: int = 1
    attention: str = "xla"

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
        return jnp.take(self.token_embedding, token_BS, axis=0, mode="clip").astype(self.dtype)

    @nn.compact
    def __call__(
        self,
        x_BSD: jax.Array,
        position_BS: jax.Array,
        segment_BS: jax.Array,
        keys_B: jax.Array | None = None,
        *,
        collect: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Hidden states of a row.

        Args:
            x_BSD: embedded slots: tokens and visual tokens.
            position_BS: position of each slot in its sample, from 0.
            segment_BS: sample of each slot; slots see earlier slots of their own sample.
            keys_B: dropout keys; None: no dropout.
            collect: also return hidden states.

        Returns:
            hidden_BSD after the final norm; and, if `collect`, (1 + L, B, S, D): the embedded row with positions and
            the output of every block.
        """
        c = self.config
        place = jnp.take(self.position_embedding, position_BS + POSITION_OFFSET, axis=0, mode="clip")
        x = x_BSD + place.astype(self.dtype)
        first = x
        block = BlockConfig(c.width, c.heads, c.mlp_width, c.activation, c.layer_norm_eps, self.dtype, self.remat,
                            self.unroll, c.dropout)
        x, hidden = run_blocks(block, c.depth, x, segment_BS, keys_B, collect=collect,
                               spatial=KERNELS[self.attention].causally)
        out = LayerNorm(c.layer_norm_eps, self.dtype, name="final_norm")(x)
        return out, (jnp.concatenate([first[None], hidden]) if collect else None)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """logits_BTK in f32; rows of the table beyond the vocabulary get -inf."""
        B, T, D = hidden_BTD.shape
        f32 = jnp.promote_types(self.dtype, jnp.float32)
        logits_BTK = product(hidden_BTD.reshape(B * T, D), self.token_embedding, f32, transposed=True).reshape(B, T, -1)
        real_K = jnp.arange(self.config.vocabulary_rows) < self.config.vocabulary_size
        return jnp.where(real_K[None, None], logits_BTK, -jnp.inf)
