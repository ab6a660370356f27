"""Text from clips and prompts on the device: encode the images, read the row, then one token after another.

    images -encode-> visual tokens     </s> prompt clip -read-> hidden -> logits of the text ids -> id -read-> ... </s>

All of it is one compiled call. Rows have different lengths and end at different tokens; the loop ends when all have
said </s> or have as many tokens as they may have.
Dimensions: B rows, C slots of a prompt's row, K text ids, Y most tokens of a text; see batch.py for others.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agent_jax.actions.vocabulary import EOS
from agent_jax.config import Config
from agent_jax.models.agent import Params
from agent_jax.models.language import KVCache, VisibleCache
from agent_jax.policy.row_reader import RowReader, Rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextSampling:
    """How the tokens of each row are chosen; arrays."""

    temperature: Any  # f32 (): 0: the most probable token
    top_p: Any  # f32 (): of the most probable tokens, the fewest that together have this probability; 1: all
    seed_B: Any  # uint32: of each row's random numbers
    limit_B: Any  # int32: most tokens, </s> included


class DecodedText(NamedTuple):
    """Texts, not yet known to be finite."""

    ids_BY: jax.Array  # int32, </s> included
    length_B: jax.Array  # int32
    log_probability_B: jax.Array  # f32, of all tokens, among the text ids at temperature 1
    finite_B: jax.Array  # bool: all logits were finite


class _State(NamedTuple):
    """What is carried from token to token."""

    found: DecodedText
    step: jax.Array  # number of the next token
    hidden_BD: jax.Array  # of the last slot that was read
    cache: KVCache  # of the tokens, a column each
    open_B: jax.Array  # bool: the text goes on


class TextDecoder:
    """The compiled function of one model; holds no parameters."""

    def __init__(self, config: Config, *, text_size: int, longest: int, video: bool) -> None:
        """Build the function.

        Args:
            config: of a run; `model.language.vocabulary_size` is set.
            text_size: ids of the vocabulary that are text, the first ones; no other id is generated.
            longest: most tokens of a text, </s> included.
            video: the images of a row are clips, one a camera.
        """
        self._reader, self._text_size, self._longest = RowReader(config, video=video), text_size, longest
        jit: Any = functools.partial(jax.jit, compiler_options=self._reader.compiler_options)
        self.decode = jit(self._decode)

    def _decode(self, params: Params, frames_BFHWC: jax.Array, clip_BF: jax.Array, rows: Rows, how: TextSampling
                ) -> DecodedText:
        """The texts of rows, whose images are `frames_BFHWC` in clips `clip_BF`."""
        visual_BFVD = self._reader.encode(params, frames_BFHWC, clip_BF)
        B, Y = len(visual_BFVD), self._longest
        hidden_BD, read = self._reader.read(params, visual_BFVD.reshape(B, -1, visual_BFVD.shape[-1]), rows)
        past = VisibleCache(read, jnp.arange(rows.token_BC.shape[1])[None] < rows.count_B[:, None])
        blank = DecodedText(jnp.zeros((B, Y), jnp.int32), jnp.zeros((B,), jnp.int32), jnp.zeros((B,), jnp.float32),
                            jnp.ones((B,), bool))
        start = _State(blank, jnp.zeros((), jnp.int32), hidden_BD, self._reader.language.blank_cache(B, Y),
                       jnp.ones((B,), bool))
        return jax.lax.while_loop(
            lambda state: jnp.any(state.open_B),
            lambda state: self._read_token(params, self._choose(params, state, how), past, rows.next_position()),
            start).found

    def _choose(self, params: Params, state: _State, how: TextSampling) -> _State:
        """Append a token to every open text."""
        found, open_B, step = state.found, state.open_B, state.step
        bound: Any = self._reader.language.bind({"params": params["language"]})
        logits_BK = bound.logits(state.hidden_BD[:, None])[:, 0, : self._text_size]
        token_B = jax.lax.cond(how.temperature > 0, lambda: sample(logits_BK, how, step),
                               lambda: jnp.argmax(logits_BK, axis=1))
        log_probability_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BK), token_B[:, None], axis=1)[:, 0]
        finite_B = jnp.all(jnp.isfinite(logits_BK), axis=1)
        length_B = found.length_B + open_B
        found = DecodedText(found.ids_BY.at[:, step].set(jnp.where(open_B, token_B, 0)), length_B,
                            found.log_probability_B + jnp.where(open_B, log_probability_B, 0.0),
                            found.finite_B & (finite_B | ~open_B))
        return state._replace(found=found, open_B=open_B & (token_B != EOS) & (length_B < how.limit_B))

    def _read_token(self, params: Params, state: _State, past: VisibleCache, position_B: jax.Array) -> _State:
        """Read the token that was appended last; complete texts read along, without effect."""
        B, Y = state.found.ids_BY.shape
        visible_BY = jnp.broadcast_to(jnp.arange(Y) < state.step, (B, Y))
        bound: Any = self._reader.language.bind({"params": params["language"]})
        token_B1 = jax.lax.dynamic_slice_in_dim(state.found.ids_BY, state.step, 1, axis=1)
        hidden_BD, new = bound.read(bound.embed(token_B1), (position_B + state.step)[:, None],
                                    jnp.zeros((B,), jnp.int32), (past, VisibleCache(state.cache, visible_BY)))
        cache = jax.tree.map(lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, state.step, axis=2),
                             state.cache, new)
        return state._replace(step=state.step + 1, hidden_BD=hidden_BD, cache=cache)


def sample(logits_BK: jax.Array, how: TextSampling, step: jax.Array) -> jax.Array:
    """A token of each row from the softmax of logits / temperature, among the ids that `top_p` keeps; int (B,)."""
    scaled_BK = logits_BK / how.temperature

    def noise(seed: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), step), logits_BK.shape[1:])

    # Gumbel-max (Gumbel, 1954): the best of logits + noise is a sample of the softmax.
    kept_BK = nucleus(scaled_BK, how.top_p)
    return jnp.argmax(jnp.where(kept_BK, scaled_BK + jax.vmap(noise)(how.seed_B), -jnp.inf), axis=1)


def nucleus(logits_BK: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Which ids top-p sampling keeps: the fewest most probable ones whose probability reaches `top_p` (Holtzman, 2020).

    Returns:
        bool (B, K); ids that are as probable as the last one are kept too.
    """
    probability_BK = jax.nn.softmax(logits_BK)
    sorted_BK = -jnp.sort(-probability_BK, axis=1)
    before_BK = jnp.cumsum(sorted_BK, axis=1) - sorted_BK  # of all more probable ids
    least_B = jnp.min(jnp.where(before_BK < top_p, sorted_BK, jnp.inf), axis=1)
    return probability_BK >= least_B[:, None]
