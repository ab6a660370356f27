"""Which ids are legal at the choices of a batch, so that its accuracy is that of acting: the best legal id.

    target        [STARTACTION] [ROBOTACTIONX13] [ROBOTACTIONY3] [ENDOFACTION]
    choice_BT          -1              1                2             -1          the automaton's state at a choice

Dimensions beside those of batch.py: N states of all automata together, U ids of all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.actions.codec import BoundSpec
from agent_jax.batch import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class ChoiceTable:
    """The automata of the domains of a run."""

    ids_U: np.ndarray  # int32, ascending
    legal_NU: np.ndarray  # bool
    first_D: np.ndarray  # int32: the row of legal_NU of each domain's state 0

    @classmethod
    def of(cls, specs: Mapping[int, BoundSpec | None]) -> Self | None:
        """The table of the action specs by a domain's index; None if no domain has one."""
        automata = {index: bound.automaton for index, bound in specs.items() if bound is not None}
        if not automata:
            return None
        ids_U = np.unique(np.concatenate([automaton.ids_A for automaton in automata.values()]))
        first_D, rows = np.zeros(max(specs) + 1, np.int32), []
        for index, automaton in automata.items():
            first_D[index] = sum(map(len, rows))
            legal_QU = np.zeros((len(automaton.next_QA), len(ids_U)), bool)
            legal_QU[:, np.searchsorted(ids_U, automaton.ids_A)] = automaton.next_QA >= 0
            rows.append(legal_QU)
        return cls(ids_U, np.concatenate(rows), first_D)

    def best(self, logits_BTK: jax.Array, batch: Batch) -> jax.Array:
        """int32 (B, T): the legal id with the best logit at each choice, as greedy acting takes; any id elsewhere."""
        logits_BTU = jnp.take(jax.lax.stop_gradient(logits_BTK), self.ids_U, axis=-1)
        row_BT = jnp.asarray(self.first_D)[batch.domain_BT] + jnp.maximum(batch.choice_BT, 0)
        legal_BTU = jnp.asarray(self.legal_NU)[row_BT]
        return jnp.asarray(self.ids_U)[jnp.argmax(jnp.where(legal_BTU, logits_BTU, -jnp.inf), axis=-1)]


def choice_weight(batch: Batch) -> jax.Array:
    """f32 (B, T): weight of a target in the action accuracy; 0 where its id is forced, as delimiters are."""
    return jnp.where(batch.choice_BT >= 0, batch.action_weight_BT, 0.0)
