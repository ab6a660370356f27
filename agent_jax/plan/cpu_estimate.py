"""Estimates an accelerator's memory traffic and collectives from the program that XLA's CPU compiler made.

The partitioner is the same for all, but the CPU compiler then computes and sends bfloat16 as float32, keeps an
all-reduce where an accelerator has a reduce-scatter, and fuses little. So here:

    collectives   of values that were bfloat16 count half; an all-reduce of which a device reads only its slice is a
                  reduce-scatter
    memory        operands and results of matrix products, once each, and the optimizer's arrays; elementwise work is
                  assumed to be fused with them, so this is a lower bound
"""

from __future__ import annotations

import math

from agent_jax.plan.collectives import KINDS, Collective
from agent_jax.plan.hlo import Computation, Instruction, Module
from agent_jax.plan.replica_groups import replica_groups

_SAME_VALUES = ("bitcast", "copy", "reshape", "transpose", "slice", "dynamic-slice", "get-tuple-element")
_SAME_SIZE = ("bitcast", "copy", "reshape", "convert")
# In a step of AdamW: parameter, both moments and gradient are read, parameter and both moments are written.
OPTIMIZER_PASSES = 7


def estimated_collectives(module: Module, devices: int) -> list[Collective]:
    """The collectives that an accelerator would run; a combined one counts as its parts."""
    found = []
    for computation, instruction, times in module.walk():
        kind = instruction.opcode
        if kind not in KINDS:
            continue
        members = replica_groups(instruction.attributes, devices)
        if members.shape[1] < 2:
            continue
        # XLA's AllReducePromotion gives this name to a bfloat16 sum that it computes in float32.
        promoted = (instruction.called("to_apply") or "").endswith("_promoted")
        for place, (name, array) in enumerate(zip(instruction.operands, instruction.arrays, strict=True)):
            operand = computation.instructions[name]
            narrow = array.dtype == "f32" and (promoted or _was_bfloat16(module, [(computation, None)], operand))
            payload = array.bytes * (members.shape[1] if kind == "reduce-scatter" else 1) // (2 if narrow else 1)
            part = place if len(instruction.operands) > 1 else None
            read = _elements_read(module, [(computation, None)], instruction, part) if kind == "all-reduce" else None
            scatters = read is not None and read * members.shape[1] == math.prod(array.shape)
            found.append(Collective("reduce-scatter" if scatters else kind, payload, members, times, instruction.scope,
                                    "bf16" if narrow else array.dtype))
    return found


def estimated_memory_bytes(module: Module, element_bytes: int, parameter_bytes: int) -> int:
    """A lower bound of the bytes that one device moves to and from its memory.

    Args:
        module: compiled.
        element_bytes: of the dtype of matrix products.
        parameter_bytes: of the parameters on one device, in float32.
    """
    elements = 0
    for computation, instruction, times in module.walk():
        for holder, each in [(computation, instruction), *module.inside(instruction)]:
            if each.opcode in ("dot", "convolution"):
                arrays = [holder.instructions[name].arrays[0] for name in each.operands[:2]] + [each.arrays[0]]
                elements += times * sum(math.prod(array.shape) for array in arrays)
    return element_bytes * elements + OPTIMIZER_PASSES * parameter_bytes


# A place inside fusions: computations from the outermost in, each with the fusion that calls it.
_Place = list[tuple[Computation, Instruction | None]]


def _was_bfloat16(module: Module, place: _Place, instruction: Instruction) -> bool:
    """Whether a float32 array holds values that were rounded to bfloat16."""
    while True:
        computation = place[-1][0]
        if instruction.opcode == "convert":
            source = computation.instructions[instruction.operands[0]]
            return source.arrays[0].dtype == "bf16"
        if instruction.opcode in _SAME_VALUES:
            instruction = computation.instructions[instruction.operands[0]]
        elif instruction.opcode == "fusion" and len(instruction.arrays) == 1:
            inner = module.computations[str(instruction.called("calls"))]
            place, instruction = [*place, (inner, instruction)], inner.root
        elif instruction.opcode == "parameter" and place[-1][1] is not None:
            caller = place[-1][1]
            name = caller.operands[int(instruction.literal)]
            place = place[:-1]
            instruction = place[-1][0].instructions[name]
        else:
            return False


def _elements_read(module: Module, place: _Place, instruction: Instruction, part: int | None) -> int | None:
    """Elements of the one slice that reads a result, or one part of it; None if anything else reads it."""
    while True:
        computation, caller = place[-1]
        users = computation.users[instruction.name]
        if part is not None:
            users = [user for user in users if f"index={part}" in user.attributes.replace(",", " ").split()]
            part = None
        if not users and instruction.is_root and caller is not None:
            place, instruction = place[:-1], caller
            continue
        if len(users) != 1:
            return None
        user = users[0]
        if user.opcode == "dynamic-slice" and user.operands[0] == instruction.name:
            return math.prod(user.arrays[0].shape)
        if user.opcode == "fusion" and user.operands.count(instruction.name) == 1:
            inner = module.computations[str(user.called("calls"))]
            place = [*place, (inner, user)]
            instruction = inner.parameters[user.operands.index(instruction.name)]
        elif user.opcode in _SAME_SIZE or user.opcode == "get-tuple-element":
            instruction = user
        else:
            return None
