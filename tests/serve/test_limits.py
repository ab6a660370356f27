"""Limits of actions and of the rate of requests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_jax.actions import BABYAI, CALVIN, LANGUAGE_TABLE
from agent_jax.serve.limits import ActionLimits, RateLimiter, RefusedActionError


def limits(tmp_path: Path, content: Any, beyond: Any = "clamp", spec: Any = LANGUAGE_TABLE) -> ActionLimits:
    path = tmp_path / "limits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return ActionLimits.read(path, spec, beyond)


def test_a_component_beyond_its_limit_is_clamped_and_named(tmp_path: Path):
    found, changed = limits(tmp_path, {"action": [None, [-0.01, 0.02]]}).apply({"action": np.float32([9, 0.03])})
    np.testing.assert_array_equal(found["action"], np.float32([9, 0.02]))
    assert found["action"].dtype == np.float32
    assert changed == ["action[1]: 0.03 -> 0.02"]


def test_no_action_passes_a_limit_by_rounding_to_float32(tmp_path: Path):
    for limit in np.random.default_rng(0).uniform(0.001, 0.029, 200).tolist():
        found, _ = limits(tmp_path, {"action": [[-limit, limit]] * 2}).apply({"action": np.float32([-1, 1])})
        assert float(found["action"][1]) <= limit
        assert float(found["action"][0]) >= -limit


def test_an_action_within_the_limits_is_unchanged_and_one_beyond_can_be_refused(tmp_path: Path):
    refusing = limits(tmp_path, {"action": [[-0.01, 0.02]] * 2}, "refuse")
    assert refusing.apply({"action": np.float32([0.01, -0.01])})[1] == []
    with pytest.raises(RefusedActionError, match=re.escape("action[0]: 0.03 -> 0.02")):
        refusing.apply({"action": np.float32([0.03, 0])})


@pytest.mark.parametrize("action", [{"action": np.float32([0, np.nan])}, {"action": np.float32([np.inf, 0])},
                                    {"action": np.zeros(3)}, {}, {"action": np.zeros(2), "more": np.zeros(1)}],
                         ids=["nan", "inf", "shape", "none", "more"])
def test_an_action_that_is_not_finite_or_does_not_fit_the_spec_is_refused_without_limits(action: Any):
    with pytest.raises(RefusedActionError, match="not finite|keys and shapes"):
        ActionLimits(LANGUAGE_TABLE).apply(action)


def test_the_terminal_action_is_allowed():
    terminal = LANGUAGE_TABLE.terminal and {"terminal": np.array(True)}
    assert ActionLimits(LANGUAGE_TABLE).apply(terminal)[0] == terminal
    with pytest.raises(RefusedActionError):
        ActionLimits(BABYAI).apply({"terminal": np.array(True)})


@pytest.mark.parametrize(("content", "spec", "message"), [
    ("{", LANGUAGE_TABLE, "not JSON"),
    ([1], LANGUAGE_TABLE, "expected a map by key"),
    ({"speed": [0, 1]}, LANGUAGE_TABLE, "'speed': expected .*'language_table': action"),
    ({"action": [0, 1]}, BABYAI, "a choice cannot be clamped"),
    ({"action": [[0, 1]]}, LANGUAGE_TABLE, "2 components"),
    ({"action": [[1, 0], None]}, LANGUAGE_TABLE, "low <= high"),
    ({"action": [["a", 1], None]}, LANGUAGE_TABLE, "low <= high"),
    ({"action": [None, [float("nan"), 1]]}, LANGUAGE_TABLE, "low <= high"),
    ({"action": [[20, 30], None]}, LANGUAGE_TABLE, "check the units"),
])
def test_invalid_limits_are_errors(tmp_path: Path, content: Any, spec: Any, message: str):
    with pytest.raises(ValueError, match=message):
        limits(tmp_path, content, spec=spec)


def test_limits_in_json_have_null_for_no_limit(tmp_path: Path):
    found = json.loads(json.dumps(limits(tmp_path, {"action": [None] * 6 + [[-1, 1]]}, spec=CALVIN).to_json()))
    assert found["bounds"]["action"] == {"low": [None] * 6 + [-1], "high": [None] * 6 + [1]}
    with pytest.raises(FileNotFoundError, match="no such file"):
        ActionLimits.read(tmp_path / "none.json", CALVIN)


def test_a_rate_limiter_allows_a_second_of_messages_and_then_returns_the_waiting_time(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    rate = RateLimiter(4)
    assert [rate.take() for _ in range(4)] == [0] * 4
    assert rate.take() == pytest.approx(0.25)
    now[0] = 0.3
    assert rate.take() == 0
    assert rate.take() > 0
    assert not any(RateLimiter(0).take() for _ in range(1000))
