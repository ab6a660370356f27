"""Every kind of part can be stored."""

from __future__ import annotations

import typing

from agent_jax.actions import Part
from agent_jax.actions.specs import PARTS


def test_every_part_has_a_name_in_stored_specs() -> None:
    assert set(PARTS.values()) == set(typing.get_args(Part)), "add the new part to PARTS of agent_jax/actions/specs.py"
