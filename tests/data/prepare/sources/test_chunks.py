from __future__ import annotations

import numpy as np
import pytest

from agent_jax.actions import BLEEDING_EDGE, CALVIN, MINECRAFT, BoundSpec
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.data.prepare.sources.chunks import action_tokens, active_stretches


@pytest.mark.parametrize(("spec", "action"), [
    (MINECRAFT, {"buttons": np.arange(23) % 5 == 0, "camera": np.array([3.0, 0.0])}),
    (MINECRAFT, {"buttons": np.zeros(23, bool), "camera": np.array([0.9, -0.9])}),
    (BLEEDING_EDGE, {"buttons": np.arange(11) < 2, "left_stick": np.array([0.3, 0]), "right_stick": np.zeros(2)}),
    (CALVIN, {"action": np.array([0, 0, 0, 0, 0, 0, 1.0])}),
])
def test_token_count_is_that_of_the_encoding_without_delimiters(spec, action):
    assert action_tokens(spec, action) == len(BoundSpec(spec, Vocabulary.build("bytes", ("iafm",))).encode(action)) - 2


def test_chunks_with_more_than_one_token_per_step_are_kept():
    tokens = [0, 0, 0, 4,  3, 0, 2, 0,  1, 2, 2, 2,  0, 0, 0, 0,  2, 2]
    assert active_stretches(tokens, 4) == [(4, 12), (16, 18)]
    assert active_stretches(tokens, 9) == [(0, 18)]
    assert active_stretches([1] * 9, 9) == []
    assert active_stretches([1] * 8 + [2], 9) == [(0, 9)]
    assert active_stretches(tokens, 4, keep_idle=True) == [(0, 18)]
    assert active_stretches([], 4, keep_idle=True) == []
