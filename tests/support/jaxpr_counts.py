"""Operations of a function, and their sums by group."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import jax

from agent_jax.plan.flops import Operation, operations


def operations_of(function: Callable[..., Any], *arguments: Any, elementwise: bool = False) -> list[Operation]:
    """`operations` of a function, jitted or not; arguments may be `jax.ShapeDtypeStruct`s, and nothing is computed."""
    jitted: Any = function if hasattr(function, "trace") else jax.jit(function)
    return operations(jitted.trace(*arguments).jaxpr, elementwise=elementwise)


def flops_by_group(found: list[Operation]) -> dict[str, int]:
    """Sums by group."""
    sums: collections.Counter[str] = collections.Counter()
    for operation in found:
        sums[operation.group] += operation.flops
    return dict(sums)
