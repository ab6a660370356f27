"""Selections of a config are checked; an invalid name is reported with the nearest valid one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources.choices import check_fields, chosen_cameras, typed_options


@dataclasses.dataclass(frozen=True)
class Options:
    folder: str = ""
    count: int = 1
    names: tuple[str, ...] = ()


def test_options_override_their_defaults() -> None:
    assert typed_options(Options, PrepareConfig(options={"count": 2, "names": "a,1"})) == Options("", 2, ("a", "1"))


@pytest.mark.parametrize(("options", "message"), [
    ({"folded": 1}, r"config\.options\.folded: .*'folder'"),
    ({"folder": 1}, r"config\.options\.folder: found 1 of type int, expected str"),
    ({"count": True}, "found True of type bool, expected int"),
])
def test_unknown_options_and_other_types_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        typed_options(Options, PrepareConfig(options=options))


def test_fields_of_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"config\.fields\.a: no key"):
        check_fields(PrepareConfig(fields={"a": "first"}), ["b"])


def test_single_camera_needs_no_name_and_several_do() -> None:
    assert chosen_cameras(PrepareConfig(), ["top"]) == {"rgb": "top"}
    assert chosen_cameras(PrepareConfig(), ["top", "wrist"], "wrist") == {"rgb": "wrist"}
    assert chosen_cameras(PrepareConfig(cameras={"hand": "wrist"}), ["top", "wrist"]) == {"hand": "wrist"}
    with pytest.raises(ValueError, match="the cameras top, wrist; choose"):
        chosen_cameras(PrepareConfig(), ["wrist", "top"])
    with pytest.raises(ValueError, match="none that can be read"):
        chosen_cameras(PrepareConfig(), [])
    with pytest.raises(ValueError, match=r"config\.cameras\.rgb='tip': no such camera; did you mean 'top'"):
        chosen_cameras(PrepareConfig(cameras={"rgb": "tip"}), ["top", "wrist"])
