"""The tables of choices say the same as the automaton, for every action that it accepts."""

from __future__ import annotations

import numpy as np
import pytest
from data_stores import babyai_domain

from agent_jax.actions import BABYAI, BLEEDING_EDGE, CALVIN, LANGUAGE_TABLE, MINECRAFT, ActionSpec, BoundSpec
from agent_jax.policy.decoding_tables import DecodingTables

SPECS = {"babyai": BABYAI, "table": LANGUAGE_TABLE, "calvin": CALVIN, "minecraft": MINECRAFT, "edge": BLEEDING_EDGE}


@pytest.mark.parametrize("actions", [1, 3])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_choices_and_the_ids_forced_after_them_make_up_every_action(spec: ActionSpec, actions: int):
    single = BoundSpec(spec, babyai_domain().vocabulary).automaton
    automaton = single.repeated(actions)
    choices, rng = DecodingTables.of(automaton), np.random.default_rng(0)
    most = 0
    for _ in range(100):
        ids, state, chosen = choices.first_ids.tolist(), choices.first_state, []
        while state != automaton.accept:
            legal = np.flatnonzero(automaton.next_QA[state] >= 0)
            assert len(legal) > 1
            chosen.append(int(rng.choice(legal)))
            entered = automaton.next_QA[state, chosen[-1]]
            forced = choices.forced_QR[entered, : choices.count_Q[entered]].tolist()
            ids, state = [*ids, int(automaton.ids_A[chosen[-1]]), *forced], choices.after_Q[entered]
            assert state == automaton.accept or 1 + len(forced) <= choices.chunk
        assert automaton.accepts(ids)
        assert [single.accepts(action) for action in single.split(ids)] == [True] * actions
        columns_J = choices.columns(np.asarray(ids))
        assert columns_J.tolist() == [*chosen, *[-1] * (choices.most - len(chosen))]
        most = max(most, len(chosen))
    assert most <= choices.most <= automaton.max_length
    assert (choices.columns(None) == -1).all()


def test_an_action_that_is_not_complete_is_refused():
    choices = DecodingTables.of(BoundSpec(BABYAI, babyai_domain().vocabulary).automaton)
    with pytest.raises(ValueError, match=r"found the action ids .* expected a complete legal action"):
        choices.columns(choices.first_ids)
