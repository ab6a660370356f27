"""OPT with a key-value cache: slots are read in chunks, each after what was read before.

    read before (keys, values)       chunk
    [b w w v v v v v a a a a . . .]  [v v v v v s s s s a . .]    . masked, or read without effect
                                      every slot sees the past and the chunk up to itself

The parameters and modules are those of `language.py`, each layer on its own (`transformer.layers_apart`); the order of
work is another. Keys and values are kept, and of the last layer only the slot that predicts is computed. A cache has
an entry a layer and holds heads before slots, as the products of attention want them: B rows, N heads, Z slots, H width
of a head. C is the length of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agent_jax.config import ModelConfig
from agent_jax.models.attention import attend_after
from agent_jax.models.attention_kernels import KERNELS
from agent_jax.models.language import POSITION_OFFSET
from agent_jax.models.transformer import BlockConfig, Dense, LayerNorm, Mlp

SHORT = 8  # slots of a chunk whose last layer is computed like the others: there is little to save


class LayerCache(NamedTuple):
    """Of one layer, in the compute dtype."""

    k_BNZH: jax.Array
    v_BNZH: jax.Array


KVCache = tuple[LayerCache, ...]  # of all layers, the first one first


class VisibleCache(NamedTuple):
    """What was read before, and which slots of it each row sees."""

    cached: KVCache
    visible_BZ: jax.Array


class CachedLanguage:
    """The language model of an agent, as functions of its parameters (`params["language"]`); no dropout."""

    def __init__(self, config: ModelConfig, attention: str = "xla"):
        """Of a model's sizes and compute dtype; `attention` is the kernel for rows that begin."""
        c, self._dtype = config.language, jnp.dtype(config.dtype)
        self._causally = KERNELS[attention].causally
        self._config = c
        self._block = BlockConfig(c.width, c.heads, c.mlp_width, c.activation, c.layer_norm_eps, self._dtype)

    def blank(self, rows: int, slots: int) -> KVCache:
        """A cache of zeros with Z = `slots`."""
        c = self._config
        shape = (rows, c.heads, slots, c.width // c.heads)
        return tuple(LayerCache(jnp.zeros(shape, self._dtype), jnp.zeros(shape, self._dtype)) for _ in range(c.depth))

    def embed(self, params: Mapping[str, Any], token_BC: jax.Array) -> jax.Array:
        """Token embeddings (B, C, D)."""
        return jnp.take(params["token_embedding"], token_BC, axis=0, mode="clip").astype(self._dtype)

    def logits(self, params: Mapping[str, Any], hidden_BD: jax.Array, ids_A: jax.Array) -> jax.Array:
        """logits_BA, in f32, of the given ids alone: a choice among legal ids needs no others."""
        table_AD = jnp.take(params["token_embedding"], ids_A, axis=0).astype(self._dtype)
        f32 = jnp.promote_types(self._dtype, jnp.float32)
        return jnp.einsum("BD,AD->BA", hidden_BD, table_AD, preferred_element_type=f32)

    def read(self, params: Mapping[str, Any], x_BCD: jax.Array, position_BC: jax.Array, last_B: jax.Array,
             past: Sequence[VisibleCache] = ()) -> tuple[jax.Array, KVCache]:
        """Read a chunk.

        Args:
            params: of the language model.
            x_BCD: embedded slots, those of a row at its front.
            position_BC: position of each slot in its sample.
            last_B: the slot of each row whose hidden state is wanted; what follows it is read without effect.
            past: what all slots of the chunk see before it.

        Returns:
            hidden_BD of those slots after the final norm, and keys and values of the chunk (Z = C).
        """
        depth = self._config.depth
        x = self._placed(params, x_BCD, position_BC)
        if x.shape[1] <= SHORT:
            x, new = self._through(params, x, depth, past)
            hidden_B1D = jnp.take_along_axis(x, last_B[:, None, None], axis=1)
            return self._norm(params["final_norm"], hidden_B1D)[:, 0], new
        x, early = self._through(params, x, depth - 1, past)
        p = _layer(params, depth - 1)
        x_B1D = jnp.take_along_axis(x, last_B[:, None, None], axis=1)
        k, v = self._queries_keys_values(p, x, ("k", "v"))
        [q] = self._queries_keys_values(p, x_B1D, ("q",))
        x_B1D = self._finish(p, x_B1D, attend_after(q, k, v, last_B[:, None], _seen(past, depth - 1)))
        hidden_BD = self._norm(params["final_norm"], x_B1D)[:, 0]
        return hidden_BD, (*early, _heads_first(k, v))

    def keys_values(self, params: Mapping[str, Any], x_BCD: jax.Array, position_BC: jax.Array) -> KVCache:
        """Read a chunk that begins its rows and after which nothing is said yet: of the last layer, no more is needed.

        Args:
            params: of the language model.
            x_BCD: embedded slots.
            position_BC: position of each slot in its sample.

        Returns:
            Keys and values of the chunk (Z = C).
        """
        depth = self._config.depth
        x, early = self._through(params, self._placed(params, x_BCD, position_BC), depth - 1, ())
        k, v = self._queries_keys_values(_layer(params, depth - 1), x, ("k", "v"))
        return (*early, _heads_first(k, v))

    def _placed(self, params: Mapping[str, Any], x_BCD: jax.Array, position_BC: jax.Array) -> jax.Array:
        """Slots with their positions."""
        place = jnp.take(params["position_embedding"], position_BC + POSITION_OFFSET, axis=0, mode="clip")
        return x_BCD + place.astype(self._dtype)

    def _through(self, params: Mapping[str, Any], x: jax.Array, layers: int, past: Sequence[VisibleCache]
                 ) -> tuple[jax.Array, KVCache]:
        """x (B, C, D) after the first layers, and their keys and values."""
        new = []
        for number in range(layers):
            p = _layer(params, number)
            q, k, v = self._queries_keys_values(p, x, ("q", "k", "v"))
            # Without a past, blocks of queries skip the keys after them: half of the work.
            out = (attend_after(q, k, v, jnp.arange(x.shape[1])[None], _seen(past, number)) if past else
                   self._causally(q, k, v, jnp.ones(x.shape[:2], jnp.int32)))
            x = self._finish(p, x, out)
            new.append(_heads_first(k, v))
        return x, tuple(new)

    def _queries_keys_values(self, p: Mapping[str, Any], x: jax.Array, wanted: Sequence[str]) -> list[jax.Array]:
        """Those of q, k, v that are wanted, each (B, C, N, H)."""
        c, fused = self._config, p["attention"]["qkv"]
        parts = slice("qkv".index(wanted[0]), "qkv".index(wanted[-1]) + 1)
        kernel = {"kernel": fused["kernel"][:, parts], "bias": fused["bias"][parts]}
        normed = self._norm(p["attention_norm"], x)
        made: Any = Dense((len(wanted), c.width), self._dtype).apply({"params": kernel}, normed)
        return [made[..., i, :].reshape(*x.shape[:-1], c.heads, c.width // c.heads) for i in range(len(wanted))]

    def _finish(self, p: Mapping[str, Any], x: jax.Array, out_BCNH: jax.Array) -> jax.Array:
        """The rest of a block after its attention."""
        c = self._block
        made: Any = Dense((c.width,), c.dtype).apply({"params": p["attention"]["out"]}, out_BCNH.reshape(x.shape))
        x += made
        made = Mlp(c).apply({"params": p["mlp"]}, self._norm(p["mlp_norm"], x))
        return x + made

    def _norm(self, p: Mapping[str, Any], x: jax.Array) -> Any:
        return LayerNorm(self._config.layer_norm_eps, self._dtype).apply({"params": p}, x)


def _layer(params: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The parameters of one layer."""
    return params[f"block_{number}"]


def _seen(past: Sequence[VisibleCache], number: int) -> list[tuple[LayerCache, jax.Array]]:
    """What one layer sees of what was read before."""
    return [(part.cached[number], part.visible_BZ) for part in past]


def _heads_first(k_BCNH: jax.Array, v_BCNH: jax.Array) -> LayerCache:
    return LayerCache(k_BCNH.transpose(0, 2, 1, 3), v_BCNH.transpose(0, 2, 1, 3))
