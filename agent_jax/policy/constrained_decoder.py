"""The loop that says an action, on the device: choose an id, read it, choose the next one.

    hidden -> logits of the automaton's ids -> a legal one + the forced ids after it -> read -> hidden -> ...

All rows of a batch advance together, choice by choice, each in its own state of the automaton; the loop ends when all
have arrived at its end, which they do whatever the logits are: only legal ids are taken, and no sequence of them is
endless. Keys and values of the ids that were read stand in columns of their own beside those of the row.
Dimensions: B rows, A ids of the automaton, I most ids of an action, J most choices of one, W ids read at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agent_jax.models.language import KVCache, LanguageModel, VisibleCache
from agent_jax.policy.decoding_tables import DecodingTables
from agent_jax.policy.row_reader import Rows


class DecodedActions(NamedTuple):
    """Actions, not yet known to be sound."""

    ids_BI: jax.Array  # int32
    length_B: jax.Array  # int32
    logits_BJA: jax.Array  # f32 of each choice; -inf where an id is illegal or there was no choice
    sound_B: jax.Array  # bool: all logits of legal ids were finite


class _State(NamedTuple):
    """What is carried from choice to choice."""

    said: DecodedActions
    state_B: jax.Array  # of the automaton
    choice: jax.Array  # number of the next choice
    recent: KVCache  # W columns a choice
    real_BZ: jax.Array  # which of these columns a row has
    token_BW: jax.Array  # to be read now
    read_B: jax.Array  # how many of them; 0: the row's action is complete
    position_B: jax.Array  # of the first of them


class ConstrainedDecoder:
    """Says actions of one automaton with one model."""

    def __init__(self, language: LanguageModel, choices: DecodingTables):
        """Of a model and the tables of an automaton that has a choice."""
        self._language, self._choices = language, choices
        automaton = choices.automaton
        self._ids_A = jnp.asarray(automaton.ids_A)
        self._next_QA, self._forced_QR, self._count_Q, self._after_Q = (jnp.asarray(table) for table in (
            automaton.next_QA, choices.forced_QR, choices.count_Q, choices.after_Q))

    def __call__(self, params: Any, hidden_BD: jax.Array, past: Sequence[VisibleCache], rows: Rows
                 ) -> DecodedActions:
        """The actions of rows that were read up to their first choice.

        Args:
            params: of the language model.
            hidden_BD: hidden state of the last slot of each row.
            past: keys and values of the rows, in parts.
            rows: that were read, with the noise and the columns of their choices.
        """
        automaton, tables, B = self._choices.automaton, self._choices, len(hidden_BD)
        first, W, J = tables.first_ids, tables.chunk, tables.most
        ids_BI = jnp.zeros((B, automaton.max_length), jnp.int32).at[:, : len(first)].set(jnp.asarray(first)[None])
        blank = DecodedActions(ids_BI, jnp.full((B,), len(first), jnp.int32),
                     jnp.full((B, J, len(automaton.ids_A)), -jnp.inf, jnp.float32), jnp.ones((B,), bool))
        start = _State(blank, jnp.full((B,), tables.first_state, jnp.int32), jnp.zeros((), jnp.int32),
                       self._language.blank_cache(B, (J - 1) * W), jnp.zeros((B, (J - 1) * W), bool),
                       jnp.zeros((B, W), jnp.int32), jnp.zeros((B,), jnp.int32), rows.next_position())
        state = self._choose(params, start, hidden_BD, rows)
        if J > 1:
            state = jax.lax.while_loop(lambda s: jnp.any(s.read_B > 0),
                                       lambda s: self._choose(params, *self._read(params, s, past), rows), state)
        return state.said

    def _read(self, params: Any, s: _State, past: Sequence[VisibleCache]) -> tuple[_State, jax.Array]:
        """Read the ids that were chosen last."""
        place_1W = jnp.arange(s.token_BW.shape[1])[None]
        language: Any = self._language.bind({"params": params})
        hidden_BD, new = language.read(language.embed(s.token_BW), s.position_B[:, None] + place_1W,
                                       jnp.maximum(s.read_B - 1, 0), (*past, VisibleCache(s.recent, s.real_BZ)))
        column = (s.choice - 1) * s.token_BW.shape[1]
        recent = jax.tree.map(lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, column, axis=2),
                              s.recent, new)
        real_BZ = jax.lax.dynamic_update_slice_in_dim(s.real_BZ, place_1W < s.read_B[:, None], column, axis=1)
        return s._replace(recent=recent, real_BZ=real_BZ, position_B=s.position_B + s.read_B), hidden_BD

    def _choose(self, params: Any, s: _State, hidden_BD: jax.Array, rows: Rows) -> _State:
        """Each row that is not complete takes a legal id and the forced ones after it."""
        accept, W, B = self._choices.automaton.accept, s.token_BW.shape[1], len(hidden_BD)
        open_B = s.state_B != accept
        legal_BA = (self._next_QA[s.state_B] >= 0) & open_B[:, None]
        language: Any = self._language.bind({"params": params})
        logits_BA = language.logits_of(hidden_BD, self._ids_A).astype(jnp.float32)
        sound_B = jnp.all(jnp.isfinite(logits_BA) | ~legal_BA, axis=1)
        noise_BA, taught_B = (jax.lax.dynamic_index_in_dim(part, s.choice, axis=1, keepdims=False)
                              for part in (rows.noise_BJA, rows.taught_BJ))
        # Legal whatever the logits are: none of these scores is -inf or NaN but those of illegal ids.
        scores_BA = jnp.where(jnp.isfinite(logits_BA), logits_BA + noise_BA, jnp.finfo(jnp.float32).min)
        best_B = jnp.argmax(jnp.where(legal_BA, scores_BA, -jnp.inf), axis=1)
        column_B = jnp.where(taught_B >= 0, taught_B, best_B)

        entered_B = jnp.where(open_B, self._next_QA[s.state_B, column_B], accept)
        forced_B = jnp.where(open_B, self._count_Q[entered_B], 0)
        token_BE = jnp.concatenate([self._ids_A[column_B][:, None], self._forced_QR[entered_B]], axis=1)
        place_1E = jnp.arange(token_BE.shape[1])[None]
        said, I = s.said, s.said.ids_BI.shape[1]  # noqa: E741 - the legend's name
        new_BE = (place_1E <= forced_B[:, None]) & open_B[:, None]
        place_BE = jnp.where(new_BE, said.length_B[:, None] + place_1E, I)  # beyond the end: dropped
        state_B = jnp.where(open_B, self._after_Q[entered_B], s.state_B)
        heard_BA = jnp.where(legal_BA, logits_BA, -jnp.inf)
        said = DecodedActions(said.ids_BI.at[jnp.arange(B)[:, None], place_BE].set(token_BE, mode="drop"),
                    said.length_B + jnp.where(open_B, 1 + forced_B, 0),
                    jax.lax.dynamic_update_slice_in_dim(said.logits_BJA, heard_BA[:, None], s.choice, axis=1),
                    said.sound_B & sound_B)
        read_B = jnp.where(state_B != accept, 1 + forced_B, 0)
        token_BW = jnp.pad(token_BE, ((0, 0), (0, max(W - token_BE.shape[1], 0))))[:, :W]
        return s._replace(said=said, state_B=state_B, choice=s.choice + 1, token_BW=token_BW, read_B=read_B)
