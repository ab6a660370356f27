from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import make_domain

from agent_jax.actions import (
    BABYAI,
    BLEEDING_EDGE,
    CALVIN,
    LANGUAGE_TABLE,
    LANGUAGE_TABLE_STATE,
    MINECRAFT,
    ActionSpec,
    Bins,
    BoundSpec,
    Buttons,
    Camera,
    Choice,
    Group,
    Part,
    StateSpec,
    Stick,
    calvin_state,
)
from agent_jax.actions.arms import arm_spec
from agent_jax.actions.vocabulary import Block, ByteTokenizer, Vocabulary
from agent_jax.serve.handshake import metadata

CALVIN_STATE = calvin_state(np.linspace(-1, 1, 15), np.linspace(0.01, 2, 15))
SPECS = (LANGUAGE_TABLE, LANGUAGE_TABLE_STATE, CALVIN, CALVIN_STATE, MINECRAFT, BLEEDING_EDGE, BABYAI)
VOCABULARY = Vocabulary.build("bytes", ("iafm", "babyai"))
BOUND = {f"{spec.kind} {spec.name}": BoundSpec(spec, VOCABULARY) for spec in SPECS}
every_spec = pytest.mark.parametrize("name", BOUND)


def own(spec: ActionSpec | StateSpec) -> BoundSpec:
    """A spec bound to a vocabulary of its own tokens."""
    return BoundSpec(spec, Vocabulary(ByteTokenizer(), (Block(spec.block, spec.tokens()),)))


def action(*parts: Part, terminal: str = "") -> ActionSpec:
    return ActionSpec("test", "test", (Group("START", parts, "END"),), terminal=terminal)


def shown(bound: BoundSpec, ids: np.ndarray) -> str:
    return "".join(bound.vocabulary.token(i) for i in ids)


# Random values of a spec, and random specs.


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    width = high - low
    inside = st.floats(low, high)
    return st.one_of(inside, st.sampled_from((low, high)), st.floats(low - width, high + width),
                     st.sampled_from((-math.inf, math.inf)), st.floats(low, high).map(lambda x: float(np.float32(x))))


def part_values(part: Part) -> st.SearchStrategy[Any]:
    if isinstance(part, Choice):
        return st.sampled_from(part.numbers)
    if isinstance(part, Buttons):
        return st.lists(st.booleans(), min_size=len(part.names), max_size=len(part.names))
    if isinstance(part, (Camera, Stick)):
        still = st.just([0.0, 0.0])
        return st.one_of(still, st.tuples(*(numbers(low, high) for low, high in part.limits)).map(list))
    return numbers(part.low, part.high)


@st.composite
def values_of(draw: st.DrawFn, spec: ActionSpec | StateSpec) -> dict[str, np.ndarray]:
    drawn: dict[str, Any] = {}
    for part in sorted(spec.parts, key=lambda part: part.index or 0):
        value = draw(part_values(part), label=part.place)
        if part.index is None:
            drawn[part.key] = value
        else:
            drawn.setdefault(part.key, []).append(value)
    single = draw(st.booleans(), label="float32")
    arrays = {key: np.asarray(value) for key, value in drawn.items()}
    return {key: a.astype(np.float32) if single and a.dtype == np.float64 else a for key, a in arrays.items()}


@st.composite
def specs(draw: st.DrawFn) -> ActionSpec | StateSpec:
    """Random parts in one group (an action, with or without a terminal) or two (a state)."""
    count = draw(st.integers(1, 5))
    kinds = [draw(st.sampled_from(("bins", "choice", "vector", "buttons", "camera", "stick"))) for _ in range(count)]
    parts: list[Part] = []
    for i, kind in enumerate(kinds):
        low = draw(st.floats(-10, 10))
        high = low + draw(st.floats(0.01, 100))
        if kind == "bins":
            parts.append(Bins(f"k{i}", None, f"p{i}_", low, high, draw(st.integers(2, 30))))
        elif kind == "choice":
            tokens = tuple(f"c{i}_{j}" for j in range(draw(st.integers(1, 5))))
            values = tuple(j - 0.1 for j in range(len(tokens))) if draw(st.booleans()) else ()
            parts.append(Choice(f"k{i}", None, tokens, values))
        elif kind == "vector":
            parts.append(Choice(f"k{i}", 1, ("on", "off")))  # shared tokens, distinguished by position
            parts.append(Bins(f"k{i}", 0, "shared", low, high, 7))
        elif kind == "buttons":
            parts.append(Buttons(f"k{i}", tuple(f"b{i}_{j}" for j in range(draw(st.integers(1, 4))))))
        elif kind == "camera":
            parts.append(Camera(f"k{i}", f"x{i}_", f"y{i}_", -draw(st.integers(1, 4)), draw(st.integers(1, 4))))
        else:
            parts.append(Stick(f"k{i}", f"r{i}_", f"m{i}_", draw(st.integers(1, 9)), draw(st.integers(1, 4)),
                               draw(st.sampled_from((0.0, 0.1, 0.5)))))
    if draw(st.booleans()):
        cut = draw(st.integers(1, len(parts)))
        groups = [Group(f"S{i}", tuple(some), "E") for i, some in enumerate((parts[:cut], parts[cut:])) if some]
        return StateSpec("test", "test", tuple(groups))
    terminal = "OVER" if any(part.fixed for part in parts) and draw(st.booleans()) else ""
    return action(*parts, terminal=terminal)


def check_half_a_bin(spec: ActionSpec | StateSpec, values: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    for part in spec.parts:
        value, back = np.asarray(values[part.key], np.float64), np.asarray(found[part.key], np.float64)
        if part.index is not None:
            value, back = value[part.index], back[part.index]
        if isinstance(part, Bins):
            slack = 4e-7 * max(abs(part.low), abs(part.high), part.high - part.low)  # values are float32
            assert abs(back - np.clip(value, part.low, part.high)) <= part.width / 2 + slack
        elif isinstance(part, Camera):
            clipped = np.trunc(np.clip(value, part.low, part.high))
            assert (np.trunc(back) == clipped).all()
            inside = np.clip(value, part.low, part.high)
            assert (np.abs(back - inside) <= np.where(clipped == 0, 1, 0.5) + 1e-5).all()
        elif isinstance(part, Stick):
            check_stick(part, value, back)
        else:
            np.testing.assert_array_equal(back.astype(np.float32), value.astype(np.float32))


def check_stick(part: Stick, value: np.ndarray, back: np.ndarray) -> None:
    length = math.hypot(*value)
    if length <= part.dead_zone:
        assert (back == 0).all()
        return
    assert abs(math.hypot(*back) - min(length, 1)) <= (1 - part.dead_zone) / part.magnitudes / 2 + 1e-6
    turn = math.atan2(*back[::-1]) - math.atan2(*value[::-1])
    assert abs(math.remainder(turn, math.tau)) <= math.tau / part.rotations / 2 + 1e-5


# Properties of every spec, built in or random.


@every_spec
@given(data=st.data())
@settings(max_examples=40)
def test_decoding_an_encoded_value_is_within_half_a_bin(name: str, data: st.DataObject) -> None:
    check_encoding(BOUND[name], data.draw(values_of(BOUND[name].spec)))


@given(data=st.data())
@settings(max_examples=80)
def test_decoding_an_encoded_value_of_any_spec_is_within_half_a_bin(data: st.DataObject) -> None:
    spec = data.draw(specs())
    check_encoding(own(spec), data.draw(values_of(spec)))


def check_encoding(bound: BoundSpec, values: dict[str, np.ndarray]) -> None:
    ids = bound.encode(values)
    assert ids.dtype == np.int32
    assert len(ids) <= bound.max_length
    assert bound.automaton.accepts(ids)
    found = bound.decode(ids)
    assert {key: (a.shape, a.dtype) for key, a in found.items()} == bound.spec.fields
    check_half_a_bin(bound.spec, values, found)
    np.testing.assert_array_equal(bound.encode(found), ids)


@every_spec
@given(data=st.data())
@settings(max_examples=40)
def test_sequences_of_the_automaton_decode_and_encode_to_themselves(name: str, data: st.DataObject) -> None:
    check_generated(BOUND[name], data)


@given(data=st.data())
@settings(max_examples=80)
def test_sequences_of_the_automaton_of_any_spec_decode_and_encode_to_themselves(data: st.DataObject) -> None:
    check_generated(own(data.draw(specs())), data)


@st.composite
def arms(draw: st.DrawFn) -> ActionSpec:
    """An arm of `presets.arm_spec`, with decimal bounds or bounds by quantiles of float32 data."""
    names = draw(st.lists(st.sampled_from(("shoulder_pan", "elbow", "wrist", "gripper")), min_size=1, unique=True))
    bounds: list[tuple[float, float]] = []
    for _ in names:
        if draw(st.booleans(), label="quantiles"):
            data = draw(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=9))
            low, high = np.quantile(data, (0.01, 0.99)).tolist()
        else:
            low, high = float(draw(st.decimals(-200, 100, places=3))), float(draw(st.decimals(101, 300, places=3)))
        assume(high - low > 1e-2)
        bounds.append((low, high))
    return ActionSpec.from_dict(arm_spec("arm", names=names, low=[low for low, _ in bounds],
                                         high=[high for _, high in bounds], count=draw(st.sampled_from((2, 21, 256)))))


@given(data=st.data())
@settings(max_examples=150)
def test_no_action_decodes_beyond_the_bounds_that_a_server_announces(data: st.DataObject) -> None:
    spec = data.draw(st.one_of(st.sampled_from(SPECS), arms(), specs()))
    bound = own(type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))))  # as from a checkpoint
    domain = dataclasses.replace(make_domain("caption", 0, bound.vocabulary), **{
        "spec" if spec.kind == "action" else "state": bound})
    announced = metadata(domain, 0, checkpoint="", temperature=0.0)[f"{spec.kind}_fields"]
    choose: dict[str, Callable[[list[int]], int]] = {"first": min, "last": max,
                                                     "any": lambda ids: data.draw(st.sampled_from(ids))}
    for pick in choose.values():
        state, ids = bound.automaton.start, []
        while state != bound.automaton.accept:
            ids.append(pick(bound.automaton.legal(state).tolist()))
            state = bound.automaton.advance(state, ids[-1])
        for key, value in bound.decode(ids).items():
            if key in announced:  # not "terminal"
                flat = value.reshape(-1).astype(np.float64)  # exactly what a robot reads
                assert (announced[key]["low"] <= flat).all(), (key, value, announced[key])
                assert (flat <= announced[key]["high"]).all(), (key, value, announced[key])


@pytest.mark.parametrize("count", [21, 64, 256])
def test_the_top_edge_of_a_joint_decodes_to_its_bound(count: int) -> None:
    spec = ActionSpec.from_dict(arm_spec("arm", names=("joint", "gripper"), low=(-90, 0), high=(90, 100), count=count))
    bound = own(spec)
    assert bound.decode(bound.encode({"action": [90.0, 100.0]}))["action"].tolist() == [90.0, 100.0]


def test_a_bound_between_float32_numbers_decodes_to_the_one_within_it() -> None:
    bound = own(action(Bins("k", 0, "a", 0.0, 0.7), Bins("k", 1, "b", 0.0, 0.1), Bins("k", 2, "c", 0.0, 0.5)))
    ids = bound.encode({"k": [0.7, 0.1, 0.5]})
    found = bound.decode(ids)["k"]
    assert found.tolist() == [np.float32(0.7), np.nextafter(np.float32(0.1), np.float32(0)), 0.5]
    assert (found.astype(np.float64) <= [0.7, 0.1, 0.5]).all()
    assert bound.encode({"k": found}).tolist() == ids.tolist()


def check_generated(bound: BoundSpec, data: st.DataObject) -> None:
    automaton, state, ids = bound.automaton, bound.automaton.start, []
    while state != automaton.accept:
        ids.append(data.draw(st.sampled_from(automaton.legal(state).tolist())))
        state = automaton.advance(state, ids[-1])
    assert len(ids) <= automaton.max_length
    assert automaton.accepts(ids)
    assert bound.encode(bound.decode(ids)).tolist() == ids


@given(data=st.data())
@settings(max_examples=80)
def test_decode_accepts_a_sequence_exactly_when_the_automaton_does(data: st.DataObject) -> None:
    bound = own(data.draw(specs()))
    ids = bound.encode(data.draw(values_of(bound.spec))).tolist()
    alphabet = st.sampled_from([*bound.automaton.ids_A.tolist(), 0, bound.vocabulary.size])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(ids)))
        ids[place : place + data.draw(st.integers(0, 1))] = data.draw(st.lists(alphabet, max_size=1))
    if bound.automaton.accepts(ids):
        assert bound.encode(bound.decode(ids)).tolist() == ids
    else:
        with pytest.raises(ValueError, match=r"position \d+: found .*, expected"):
            bound.decode(ids)


@given(spec=specs())
@settings(max_examples=60)
def test_the_automaton_of_any_spec_is_sound(spec: ActionSpec | StateSpec) -> None:
    check_automaton(own(spec))


@every_spec
def test_the_automaton_is_sound(name: str) -> None:
    check_automaton(BOUND[name])


def check_automaton(bound: BoundSpec) -> None:
    """Every state is on a path from start to accept, and no path is longer than max_length."""
    automaton = bound.automaton
    ids_A, next_QA = automaton.ids_A, automaton.next_QA
    assert ids_A.dtype == next_QA.dtype == np.int32
    assert (np.diff(ids_A) > 0).all()
    states = len(next_QA)
    assert (automaton.start, automaton.accept) == (0, states - 1)
    from_start, to_accept = np.full(states, -1), np.full(states, -1)
    from_start[0], to_accept[-1] = 0, 0
    for state in range(states):
        after = next_QA[state][next_QA[state] >= 0]
        assert (after > state).all()  # so there is no cycle
        if from_start[state] >= 0:
            from_start[after] = np.maximum(from_start[after], from_start[state] + 1)
    for state in reversed(range(states)):
        after = next_QA[state][next_QA[state] >= 0]
        if len(after):
            to_accept[state] = to_accept[after].max() + 1
    assert (from_start >= 0).all()
    assert (to_accept >= 0).all()
    assert (from_start + to_accept).max() == automaton.max_length == bound.max_length
    assert len({row.tobytes() for row in next_QA}) == states  # minimal: no two states are equal


@given(spec=specs())
@settings(max_examples=60)
def test_any_spec_from_its_json_is_equal(spec: ActionSpec | StateSpec) -> None:
    check_json(spec)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind} {spec.name}")
def test_a_spec_from_its_json_is_equal(spec: ActionSpec | StateSpec) -> None:
    check_json(spec)


def check_json(spec: ActionSpec | StateSpec) -> None:
    again = type(spec).from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.to_dict() == spec.to_dict()
    assert again.fingerprint() == spec.fingerprint()
    assert spec.difference(again) == ""


# The whole language.


def test_the_automaton_is_exactly_the_language_of_encode() -> None:
    spec = action(Choice("turn", None, ("left", "right")), Buttons("keys", ("a", "b", "c")),
                  Camera("view", "x", "y", -1, 1), Stick("stick", "r", "m", 4, 1), terminal="OVER")
    bound = own(spec)
    turns = [math.tau * (k + 0.5) / 4 for k in range(4)]
    encoded = {
        tuple(bound.encode({"turn": turn, "keys": keys, "view": view, "stick": stick}).tolist())
        for turn in (0, 1)
        for keys in itertools.product((False, True), repeat=3)
        for view in itertools.product((-1, 0, 1), repeat=2)
        for stick in [(0, 0), *((math.cos(a), math.sin(a)) for a in turns)]
    } | {tuple(bound.terminal_ids().tolist())}
    generated, paths = set(), [((), bound.automaton.start)]
    while paths:
        path, state = paths.pop()
        if state == bound.automaton.accept:
            generated.add(path)
        paths += [((*path, i), bound.automaton.advance(state, i)) for i in bound.automaton.legal(state).tolist()]
    assert len(generated) == 2 * 8 * 9 * 5 + 1
    assert generated == encoded


def test_nothing_is_legal_after_the_end_and_unknown_ids_are_illegal() -> None:
    bound = BOUND["action language_table"]
    assert bound.automaton.legal(bound.automaton.accept).size == 0
    assert bound.automaton.advance(0, 10**6) == -1
    assert not bound.automaton.accepts([])


def test_the_terminal_action_has_no_other_tokens() -> None:
    bound = BOUND["action language_table"]
    start, terminal, _, end = bound.terminal_ids().tolist()
    x = VOCABULARY.id("iafm", "ROBOTACTIONX3")
    assert shown(bound, bound.terminal_ids()) == "[STARTACTION][TERMINAL][TERMINAL][ENDOFACTION]"
    assert bound.automaton.accepts(bound.terminal_ids())
    assert bound.decode(bound.terminal_ids()) == {"terminal": True}
    for wrong in ([start, x, terminal, end], [start, terminal, x, end], [start, terminal, end]):
        assert not bound.automaton.accepts(wrong)
    assert (bound.encode({"terminal": np.array(True)}) == bound.terminal_ids()).all()
    assert bound.encode({"terminal": False, "action": [0, 0]}).tolist() == bound.encode({"action": [0, 0]}).tolist()
    with pytest.raises(ValueError, match="action spec 'calvin' has no terminal token"):
        BOUND["action calvin"].terminal_ids()


# The built-in specs, token by token.


@pytest.mark.parametrize(("name", "values", "expected"), [
    ("action language_table", {"action": np.array([0.01, -0.02], np.float32)},
     "[STARTACTION][ROBOTACTIONX13][ROBOTACTIONY3][ENDOFACTION]"),
    ("state language_table", {"effector_translation": [0.15, 0.3], "effector_target_translation": [0.4, 0.0], "rgb": 0},
     "[STARTEET][ROBOTEETX0][ROBOTEETY20][ENDOFEET][STARTEETT][ROBOTEETTX11][ROBOTEETTY10][ENDOFEETT]"),
    ("action calvin", {"action": [-1, -0.95, 0, 0.1, 0.99, 1, -1]},
     "[STARTACTION][ROBOTACTION0_0][ROBOTACTION1_0][ROBOTACTION2_10][ROBOTACTION3_11][ROBOTACTION4_19]"
     "[ROBOTACTION5_20][GRIPPER_CLOSE][ENDOFACTION]"),
    ("state calvin", {"robot_obs": [*np.linspace(-1, 1, 15)[:14] + 1e-4, 1]},
     "[STARTSTATE]" + "".join(f"[ROBOTSTATE{d}_10]" for d in range(14)) + "[GRIPPER_OPENED][ENDOFSTATE]"),
    ("action minecraft", {"buttons": [False] * 23, "camera": [0.9, -0.9]}, "[STARTACTION][ENDOFACTION]"),
    ("action minecraft", {"buttons": [False] * 3 + [True] + [False] * 16 + [True, False, False], "camera": [3.9, -0.9]},
     "[STARTACTION][forward][attack][CAMERAX3][CAMERAY0][ENDOFACTION]"),
    ("action minecraft", {"buttons": [True] + [False] * 22, "camera": [-70, 70]},
     "[STARTACTION][ESC][CAMERAX-49][CAMERAY50][ENDOFACTION]"),
    ("action bleeding_edge", {"buttons": [False] * 11, "left_stick": [0, 0], "right_stick": [0, 0]},
     "[STARTACTION][ENDOFACTION]"),
    ("action bleeding_edge", {"buttons": [True, True] + [False] * 9, "left_stick": [0.3, 0.0], "right_stick": [0, -2]},
     "[STARTACTION][Evade][Jump][lrot1][lmag2][rrot193][rmag4][ENDOFACTION]"),
    ("action babyai", {"action": 2}, "[STARTACTION][forward][ENDOFACTION]"),
])  # fmt: skip
def test_an_action_reads_as_in_the_papers_layout(name: str, values: dict[str, Any], expected: str) -> None:
    assert shown(BOUND[name], BOUND[name].encode(values)) == expected


def test_language_table_decodes_to_the_papers_printed_numbers() -> None:
    for k in range(20):
        ids = VOCABULARY.ids("iafm", ["STARTACTION", f"ROBOTACTIONX{k}", "ROBOTACTIONY0", "ENDOFACTION"])
        found = BOUND["action language_table"].decode(ids)["action"]
        np.testing.assert_allclose(found, [-0.0285 + 0.003 * k, -0.0285], atol=1e-9)
    top = BOUND["action language_table"].encode({"action": [0.03, 0.03]})
    assert BOUND["action language_table"].decode(top)["action"].tolist() == [np.float32(0.03)] * 2  # not 0.0315


def test_babyai_actions_are_minigrids_numbers() -> None:
    bound = BOUND["action babyai"]
    names = ["left", "right", "forward", "pickup", "drop", "toggle", "done"]
    for i, token in enumerate(names):
        ids = bound.encode({"action": np.int64(i)})
        assert ids.tolist() == VOCABULARY.ids("babyai", ["STARTACTION", token, "ENDOFACTION"]).tolist()
        found = bound.decode(ids)["action"]
        assert (found.dtype, found.shape, int(found)) == (np.int32, (), i)


def test_the_built_in_specs_are_frozen() -> None:
    """Checkpoints refuse specs with other fingerprints, so a changed built-in spec invalidates them."""
    found = {f"{spec.kind} {spec.name}": spec.fingerprint()[:16] for spec in SPECS if spec is not CALVIN_STATE}
    assert found == {
        "action language_table": "0f49c8aca0599d01",
        "state language_table": "360784e28597f317",
        "action calvin": "32f17a16137f5459",
        "action minecraft": "c6d531b1ba3616b6",
        "action bleeding_edge": "ea7ceeb602af421d",
        "action babyai": "787fd5f076fb2217",
    }


def test_a_spec_has_units_bounds_rate_and_frame() -> None:
    assert LANGUAGE_TABLE.units == {"action[0]": "m", "action[1]": "m"}
    assert LANGUAGE_TABLE.rate_hz == 10.0
    assert LANGUAGE_TABLE.absolute is False
    assert "robot base" in LANGUAGE_TABLE.frame
    low, high = LANGUAGE_TABLE.bounds("action")
    assert low.tolist() == [-0.03, -0.03]
    assert high.tolist() == [0.03, 0.03]
    low, high = BABYAI.bounds("action")
    assert (low.shape, float(low), float(high)) == ((), 0.0, 6.0)
    swapped = action(Bins("k", 1, "b", 2, 3), Bins("k", 0, "a", 0, 1))
    assert swapped.bounds("k")[0].tolist() == [0, 2]
    low, high = calvin_state(np.arange(15.0), np.full(15, 2.0)).bounds("robot_obs")  # mean +- 3 std, then the gripper
    assert low.tolist() == [*(d - 6.0 for d in range(14)), -1.0]
    assert high.tolist() == [*(d + 6.0 for d in range(14)), 1.0]
    with pytest.raises(ValueError, match="no key 'arm'; it has action"):
        LANGUAGE_TABLE.bounds("arm")
    assert [MINECRAFT.fields[key] for key in ("buttons", "camera")] == [((23,), np.dtype(bool)), ((2,), np.dtype("f4"))]


# Edges.


@given(st.floats(-1e3, 1e3), st.floats(1e-2, 1e3), st.integers(2, 64))
def test_bins_match_the_papers_formula_and_only_the_top_edge_is_the_last(low: float, span: float, n: int) -> None:
    high = low + span
    part = Bins("k", None, "b", low, high, n)
    assert part.symbols(low) == part.symbols(-math.inf) == [0]
    assert part.symbols(high) == part.symbols(math.inf) == [n - 1]
    below = math.nextafter(high, -math.inf)
    below_is_top_edge = float(np.float32(below)) == below  # then it is the largest float32 within the bounds
    assert part.symbols(below) == [n - 1 if below_is_top_edge else n - 2]
    for k in range(n - 1):
        for share in (0.001, 0.5, 0.999):
            x = low + (k + share) * part.width
            assert part.symbols(x) == [k] == [int((min(max(x, low), high) - low) / part.width)]
        edge = low + k * part.width
        assert part.symbols(edge) in ([k], [k - 1])  # rounding of the edge itself
        assert part.symbols(math.nextafter(edge, math.inf) + 1e-9 * span) == [k]


def test_exact_edges_of_bins_belong_to_the_upper_bin() -> None:
    part = Bins("k", None, "b", -10.0, 10.0)
    assert [part.symbols(float(x))[0] for x in range(-12, 13)] == [0, 0, *range(21), 20, 20]


def test_edges_of_stick_bins_are_equally_spaced() -> None:
    part = Stick("k", "r", "m", rotations=4, magnitudes=2, dead_zone=0.5)
    cases = {(0.5, 0.0): [], (0.51, 0.0): [0, 4], (0.0, 1.0): [1, 5], (-1.0, 0.0): [2, 5], (0.0, -0.6): [3, 4],
             (1.0, -1e-300): [0, 5], (math.inf, 0.0): [0, 5], (0.7, -0.7): [3, 5]}
    for value, expected in cases.items():
        assert part.symbols(value) == expected, value


@pytest.mark.parametrize(("values", "message"), [
    ({"action": [0.0, math.nan]}, r"action\[1\] \(dy\): found nan, expected a number"),
    ({"action": np.zeros((1, 2))}, r"action: found shape \(1, 2\) of float64, expected shape \(2,\) .*_table"),
    ({"action": 0.0}, r"action: found shape \(\) of float64, expected shape \(2,\)"),
    ({"action": [[0.0], [0.0, 1.0]]}, r"action: found \[\[0.0\], \[0.0, 1.0\]\], expected an array of shape \(2,\)"),
    ({"action": ["0", "1"]}, r"action: found shape \(2,\) of <U1, expected shape \(2,\) of numbers"),
    ({"act": [0, 0], "reward": 1}, r"found the keys \['act', 'reward'\], expected 'action'"),
])  # fmt: skip
def test_a_wrong_value_is_named_with_its_key_and_index(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BOUND["action language_table"].encode(values)


@pytest.mark.parametrize(("name", "values", "message"), [
    ("action calvin", {"action": [0.0] * 7},
     r"action\[6\] \(gripper\): found 0.0, expected one of 1.0 \(GRIPPER_OPEN\), -1.0"),
    ("action babyai", {"action": 7}, r"action: found 7, expected one of 0 \(left\), 1 \(right\)"),
    ("action babyai", {"action": math.nan}, "action: found nan, expected one of"),
    ("action minecraft", {"buttons": [0.5] + [0.0] * 22, "camera": [0, 0]}, r"buttons\[0\] \(ESC\): found 0.5"),
    ("action minecraft", {"buttons": [0] * 22, "camera": [0, 0]}, r"buttons: found shape \(22,\)"),
    ("action minecraft", {"buttons": [0] * 23, "camera": [0, math.nan]}, r"camera\[1\]: found nan"),
    ("action bleeding_edge", {"buttons": [0] * 11, "left_stick": [0, 0], "right_stick": [math.nan, 0]},
     r"right_stick\[0\]: found nan"),
    ("state calvin", {"robot_obs": [math.nan] * 15}, r"robot_obs\[0\] \(x\): found nan"),
])  # fmt: skip
def test_a_value_without_a_token_is_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BOUND[name].encode(values)


def test_an_illegal_sequence_is_refused_with_its_position() -> None:
    bound = BOUND["action babyai"]
    start, forward, end = bound.encode({"action": 2}).tolist()
    cases: list[tuple[Any, str]] = [
        ([], r"position 0: found the end, expected \[STARTACTION\]"),
        ([start, end], r"position 1: found \[ENDOFACTION\], expected \[left\] \[right\]"),
        ([start, forward], r"position 2: found the end, expected \[ENDOFACTION\]"),
        ([start, forward, end, end], r"position 3: found \[ENDOFACTION\], expected the end"),
        ([start, 10**6, end], r"position 1: found id 1000000, expected"),
        ([4 + ord("a")], r"position 0: found a, expected \[STARTACTION\]"),
        ([[start, forward, end]], r"found ids of shape \(1, 3\)"),
        ([float(start)], "type float64, expected one sequence of integers"),
    ]
    for ids, message in cases:
        with pytest.raises(ValueError, match="action 'babyai'.*" + message):
            bound.decode(ids)
    with pytest.raises(ValueError, match=r"\(22 in all\)"):
        BOUND["action language_table"].decode([VOCABULARY.id("iafm", "STARTACTION")])


def test_buttons_are_encoded_in_the_order_of_the_vocabulary() -> None:
    spec = action(Buttons("keys", ("b", "c", "a")))
    bound = BoundSpec(spec, Vocabulary(ByteTokenizer(), (Block("test", ("START", "END", "a", "b", "c")),)))
    ids = bound.encode({"keys": [True, False, True]})
    assert shown(bound, ids) == "[START][a][b][END]"
    assert bound.decode(ids)["keys"].tolist() == [True, False, True]


# Invalid specs.


@pytest.mark.parametrize(("build", "message"), [
    (lambda: Bins("k", 0, "b", 1, 1), r"k\[0\]: found bounds low=1.0, high=1.0"),
    (lambda: Bins("k", 0, "b", math.nan, 1), r"k\[0\]: found bounds low=nan"),
    (lambda: Bins("k", 0, "b", 0, math.inf), r"k\[0\]: found bounds .*high=inf"),
    (lambda: Bins("k", None, "b", 0, 1, 1), "k: found count=1"),
    (lambda: Bins("k", None, "b", 1e6, 1e6 + 0.1), "too narrow for float32"),
    (lambda: Choice("k", None, ()), "expected at least one and no repetition"),
    (lambda: Choice("k", None, ("a", "a")), "expected at least one and no repetition"),
    (lambda: Choice("k", None, ("a", "b"), (1,)), "found 1 values for 2 tokens"),
    (lambda: Choice("k", None, ("a", "b"), (1, 1 + 1e-12)), "expected finite, distinct float32"),
    (lambda: Choice("k", None, ("a", "b"), (1, math.inf)), "expected finite"),
    (lambda: Buttons("k", ("a", "a")), "found buttons"),
    (lambda: Camera("k", low=0), "expected integers low < 0 < high"),
    (lambda: Stick("k", "r", "m", dead_zone=1), r"found dead_zone=1.0, expected a number in \[0, 1\)"),
    (lambda: Stick("k", "r", "m", magnitudes=4, dead_zone=0.9999999), "too fine for float32"),
    (lambda: Group("S", (), "E"), r"group S\.\.E: expected at least one part"),
    (lambda: ActionSpec("x", "b", ()), "action spec 'x': expected at least one group"),
    (lambda: ActionSpec("x", "b", LANGUAGE_TABLE_STATE.groups), "found 2 groups, expected one"),
    (lambda: ActionSpec("x", "b", BABYAI.groups, rate_hz=-1), "found rate_hz=-1"),
    (lambda: action(Buttons("k", ("a",)), terminal="T"), "needs at least one fixed part"),
    (lambda: action(Choice("terminal", None, ("a",)), terminal="T"), "'terminal' is reserved"),
    (lambda: action(Bins("k", 1, "b", 0, 1)), r"key 'k' have indices \[1\]"),
    (lambda: action(Bins("k", 0, "b", 0, 1), Buttons("k", ("a",))), r"key 'k' have indices \[0, None\]"),
    (lambda: action(Bins("k", 0, "b", 0, 1), Bins("k", 0, "c", 0, 1)), r"key 'k' have indices \[0, 0\]"),
    (lambda: calvin_state([0.0] * 7, [1.0] * 7), "expected two vectors of at least 14 numbers"),
    (lambda: calvin_state([0.0] * 14, [1.0] * 13 + [0.0]), r"robot_obs\[13\] \(joint 7\): found bounds"),
])  # fmt: skip
def test_a_spec_that_cannot_be_inverted_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("spec", [
    action(Buttons("k", ("a", "b")), Choice("c", None, ("b", "c"))),
    action(Choice("c", None, ("b", "c")), Buttons("k", ("a", "b"))),
    action(Stick("s", "r", "m"), Stick("t", "m", "n")),
    action(Stick("s", "x", "x")),
    action(Camera("s", "x", "x")),
    action(Buttons("k", ("a", "END"))),
    action(Choice("c", None, ("T", "c")), terminal="T"),
])  # fmt: skip
def test_ambiguous_tokens_are_refused(spec: ActionSpec) -> None:
    with pytest.raises(ValueError, match=r"action spec 'test': .*(a token of its own|other prefixes)"):
        own(spec)


def test_a_vocabulary_without_the_block_or_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="no block 'iafm'; it has babyai"):
        BoundSpec(CALVIN, Vocabulary.build("bytes", ("babyai",)))
    with pytest.raises(ValueError, match="block 'babyai' has no token 'done'"):
        BoundSpec(BABYAI, Vocabulary(ByteTokenizer(), (Block("babyai", BABYAI.tokens()[:-1]),)))


# Stored specs.


def test_errors_in_a_stored_spec_name_the_field() -> None:
    def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        content = json.loads(json.dumps(LANGUAGE_TABLE.to_dict()))
        change(content)
        return content

    cases: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda c: c.update(rate=5), "action spec.rate: no such field; ActionSpec has name, block"),
        (lambda c: c.pop("name"), "action spec.name: missing"),
        (lambda c: c.update(kind="state"), "found kind 'state', expected 'action'"),
        (lambda c: c.update(groups="x"), "action spec.groups: found 'x', expected a list"),
        (lambda c: c["groups"][0].pop("end"), r"action spec.groups\[0\].end: missing"),
        (lambda c: c["groups"][0]["parts"][1].update(part="bin"), r"parts\[1\]: found part 'bin', expected one of"),
        (lambda c: c["groups"][0]["parts"][1].update(width=1), r"parts\[1\].width: no such field; Bins has key, index"),
        (lambda c: c["groups"][0]["parts"][1].update(low=1), r"parts\[1\]: action\[1\] \(dy\): found bounds low=1.0"),
        (lambda c: c["groups"][0]["parts"][1].update(low="wide"), r"parts\[1\]: could not convert"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            ActionSpec.from_dict(changed(change))


def test_a_difference_between_specs_names_the_fields() -> None:
    content = LANGUAGE_TABLE.to_dict()
    content["rate_hz"] = 5
    content["groups"][0]["parts"][1]["high"] = 0.05
    other = ActionSpec.from_dict(content)
    assert LANGUAGE_TABLE.fingerprint() != other.fingerprint()
    assert LANGUAGE_TABLE.difference(other) == (
        "rate_hz: 10.0 here, 5.0 there; groups[0].parts[1].high: 0.03 here, 0.05 there")
    assert "groups[0].parts: 2 items here, 7 there" in LANGUAGE_TABLE.difference(CALVIN)
    assert "kind: 'action' here, 'state' there" in LANGUAGE_TABLE.difference(LANGUAGE_TABLE_STATE)


@given(one=specs(), other=specs())
@settings(max_examples=40)
def test_specs_differ_exactly_when_their_fingerprints_do(
    one: ActionSpec | StateSpec, other: ActionSpec | StateSpec
) -> None:
    assume(one != other)
    assert one.difference(other) != ""
    assert one.fingerprint() != other.fingerprint()


# Speed.


def test_encoding_a_step_takes_microseconds() -> None:
    def fastest_us(encode: Callable[[], Any]) -> float:
        times = []
        for _ in range(20):
            start = time.thread_time()  # of this thread: other work on the machine does not count
            for _ in range(100):
                encode()
            times.append((time.thread_time() - start) / 100 * 1e6)
        return min(times)

    babyai, table, state = BOUND["action babyai"], BOUND["action language_table"], BOUND["state language_table"]
    turn, move = {"action": np.int64(1)}, {"action": np.array([0.01, -0.02], np.float32)}
    places = {"effector_translation": np.full(2, 0.3, "f4"), "effector_target_translation": np.full(2, 0.2, "f4")}
    assert fastest_us(lambda: babyai.encode(turn)) < 20
    assert fastest_us(lambda: (table.encode(move), state.encode(places))) < 50


def part(kind: str, **fields: Any) -> dict[str, Any]:
    own = {"bins": {"index": None, "prefix": "b", "low": 0, "high": 6},
           "stick": {"rotation_prefix": "r", "magnitude_prefix": "m"}}
    return {"part": kind, "key": "action", **own.get(kind, {}), **fields}


def declared(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "action", "name": "x", "block": "b", "groups": [{"start": "S", "parts": list(parts), "end": "E"}]}


@pytest.mark.parametrize(("parts", "message"), [
    ([part("bins", count=10**12)], r"parts\[0\]: action: found count=1000000000000, .*at most 65,536"),
    ([part("bins", count=20.0)], r"found count=20.0, expected a whole number"),
    ([part("bins", count=True)], r"found count=True, expected a whole number"),
    ([part("stick", rotations=3 * 10**8)], r"parts\[0\]: action: found rotations=300000000, .*at most 65,536"),
    ([part("stick", magnitudes=10**9)], r"found magnitudes=1000000000, .*at most 65,536"),
    ([part("stick", rotations=2**16)], r"found rotations \+ magnitudes=65540, .*at most 65,536"),
    ([part("camera", low=-(10**9), high=10**9)], r"found degrees of both axes, .*=4000000002, .*at most 65,536"),
    ([part("buttons", names=[f"b{i}" for i in range(2000)])], "found number of buttons=2000, .*at most 1,024"),
    ([part("bins", index=i, prefix=f"b{i}_", count=30_000) for i in range(3)],
     r"parts\[2\]: found 90,000 tokens in all parts up to here, expected at most 65,536"),
    ([part("bins", index=i, count=2) for i in range(5000)], r"parts\[4096\]: found 4,097 parts up to here"),
    ([part("stick", key=f"k{i}", rotations=1, magnitudes=1) for i in range(33)],
     "found 33 buttons, cameras and sticks"),
    ([part("buttons", key=f"k{i}", names=[f"b{j}" for j in range(1000)]) for i in range(2)], "found 2,000 buttons"),
])
def test_a_spec_that_would_take_too_much_memory_is_refused_by_field(parts, message):
    with pytest.raises(ValueError, match=message):
        ActionSpec.from_dict(declared(*parts))


def test_the_largest_specs_are_accepted():
    assert len(ActionSpec.from_dict(declared(part("bins", count=2**16, high=2**16))).tokens()) == 2**16 + 2
    assert ActionSpec.from_dict(declared(part("camera", low=-16_383, high=16_384))).parts[0].size == 2**16
    with pytest.raises(ValueError, match="action spec 'x': found 131,072 tokens in all parts up to here"):
        ActionSpec("x", "b", (Group("S", tuple(Bins(key, None, key, 0, 2**16, 2**16) for key in "ab"), "E"),))
