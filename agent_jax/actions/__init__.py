"""Actions and states: their specs, and conversion between values of the environment and vocabulary ids.

spec = BoundSpec(LANGUAGE_TABLE, vocabulary)
spec.encode({"action": np.array([0.01, -0.02])})   # int32 ids, delimiters included
spec.decode(ids)                                   # {"action": float32[2]} at the bin centres
spec.automaton                                     # the legal ids in each state of decoding
"""

from __future__ import annotations

from agent_jax.actions.automaton import Automaton
from agent_jax.actions.codec import BoundSpec
from agent_jax.actions.controls import Buttons, Camera, Stick
from agent_jax.actions.datasets import (
    BABYAI,
    BLEEDING_EDGE,
    CALVIN,
    LANGUAGE_TABLE,
    LANGUAGE_TABLE_STATE,
    MINECRAFT,
    calvin_state,
)
from agent_jax.actions.parts import Bins, Choice
from agent_jax.actions.specs import TERMINAL_KEY, ActionSpec, Group, Part, StateSpec

__all__ = [
    "BABYAI", "BLEEDING_EDGE", "CALVIN", "LANGUAGE_TABLE", "LANGUAGE_TABLE_STATE", "MINECRAFT", "TERMINAL_KEY",
    "ActionSpec", "Automaton", "Bins", "BoundSpec", "Buttons", "Camera", "Choice", "Group", "Part", "StateSpec",
    "Stick", "calvin_state",
]
