"""Communication of one step: every collective of the compiled program, as often as it runs.

    kind                 payload, a device      sent over its links, n devices a group (rings)
    all-gather           the result             (n - 1) / n of it
    reduce-scatter       the operand            (n - 1) / n
    all-reduce           the operand            2 (n - 1) / n
    all-to-all           the operand            (n - 1) / n
    collective-permute   the operand            all of it

Bytes are those of one device, without padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from agent_jax.plan import hlo
from agent_jax.plan.replica_groups import replica_groups

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SENT = {"all-gather": 1.0, "all-reduce": 2.0, "reduce-scatter": 1.0, "all-to-all": 1.0}


@dataclasses.dataclass(frozen=True, eq=False)
class Collective:
    """One collective instruction."""

    kind: str
    payload_bytes: int  # a device, once
    groups: np.ndarray  # int (groups, devices of a group), indices in the mesh's order
    times: int
    scope: str
    dtype: str

    @property
    def bytes(self) -> int:
        """Payload of all executions, a device."""
        return self.payload_bytes * self.times

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends over its links in all executions."""
        size = self.groups.shape[1]
        share = 1.0 if self.kind == "collective-permute" else _SENT[self.kind] * (size - 1) / size
        return self.bytes * share


def collectives(module: hlo.Module, devices: int) -> list[Collective]:
    """The collectives of a compiled program; groups of one device are left out."""
    found = []
    for _, instruction, times in module.walk():
        # A TPU's reduce-scatter is a fusion of an all-reduce and a slice of it.
        for one in (instruction, *(inner for _, inner in module.inside(instruction))):
            collective = _collective(one, instruction.bytes, times, devices)
            if collective is not None and collective.groups.shape[1] > 1:
                found.append(collective)
    return found


def _collective(instruction: hlo.Instruction, result_bytes: int, times: int, devices: int) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    arrays = instruction.arrays
    payload = sum(array.bytes for array in arrays)
    groups = replica_groups(instruction.attributes, devices)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # The result holds the operands too: (operands, results, ...).
        payload = max(array.bytes for array in arrays)
    if kind == "reduce-scatter":
        payload *= 1 if instruction.opcode.endswith("-start") else groups.shape[1]
    elif kind == "all-reduce" and result_bytes * groups.shape[1] <= payload and result_bytes < payload:
        kind = "reduce-scatter"
    return Collective(kind, payload, groups, times, instruction.scope, arrays[0].dtype)


@dataclasses.dataclass(frozen=True)
class KindTotal:
    """All collectives of one kind in one step."""

    kind: str
    count: int
    bytes: int  # payload, a device
    sent_bytes: float  # over its links, a device


def by_kind(found: Iterable[Collective]) -> list[KindTotal]:
    """Totals by kind, in the order of `KINDS`."""
    found = list(found)
    totals = []
    for kind in KINDS:
        of_kind = [each for each in found if each.kind == kind]
        if of_kind:
            totals.append(KindTotal(kind, sum(each.times for each in of_kind), sum(each.bytes for each in of_kind),
                                    sum(each.sent_bytes for each in of_kind)))
    return totals
