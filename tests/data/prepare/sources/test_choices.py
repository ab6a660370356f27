"""What a config chooses is checked, and what it cannot have is named with what could have been meant."""

from __future__ import annotations

from typing import Any

import pytest

from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import checked_options, chosen_cameras, columns


def test_options_stand_over_their_defaults() -> None:
    assert checked_options(PrepareConfig(options={"a": 2}), {"a": 1, "b": "x"}) == {"a": 2, "b": "x"}


@pytest.mark.parametrize(("options", "message"), [
    ({"folded": 1}, r"config\.options\.folded: no such option; did you mean 'folder'"),
    ({"folder": 1}, r"config\.options\.folder=1: found int, expected str"),
    ({"count": True}, "found bool, expected int"),
])
def test_options_that_are_unknown_or_of_another_type_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_options(PrepareConfig(options=options), {"folder": "", "count": 1})


def test_a_key_is_the_column_of_the_config_then_of_the_source_then_itself() -> None:
    config = PrepareConfig(fields={"a": "first"})
    assert columns(config, ["a", "b", "c"], {"a": "own", "b": "own"}) == {"a": "first", "b": "own", "c": "c"}
    with pytest.raises(ValueError, match=r"config\.fields\.a: no key"):
        columns(config, ["b"], {})


def test_the_only_camera_needs_no_name_and_several_do() -> None:
    assert chosen_cameras(PrepareConfig(), ["top"]) == {"rgb": "top"}
    assert chosen_cameras(PrepareConfig(), ["top", "wrist"], "wrist") == {"rgb": "wrist"}
    assert chosen_cameras(PrepareConfig(cameras={"hand": "wrist"}), ["top", "wrist"]) == {"hand": "wrist"}
    with pytest.raises(ValueError, match="the cameras top, wrist; say which"):
        chosen_cameras(PrepareConfig(), ["wrist", "top"])
    with pytest.raises(ValueError, match="none that can be read"):
        chosen_cameras(PrepareConfig(), [])
    with pytest.raises(ValueError, match=r"config\.cameras\.rgb='tip': no such camera; did you mean 'top'"):
        chosen_cameras(PrepareConfig(cameras={"rgb": "tip"}), ["top", "wrist"])
