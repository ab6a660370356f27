"""Matrix products and memory traffic of one device in one step, as compiled, with loops counted in full.

Matrix products are `dot`s, convolutions (TPU) or calls of cuBLAS (GPU). A fusion reads its operands and writes its
result once; it reads only the slice of an operand that it slices, as a scan does with the weights of one layer. Arrays
in a TPU's on-chip memory cost no traffic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from agent_jax.plan.hlo import FUSIONS, PRODUCT_TARGET, Array, Computation, Instruction, Module

# These move nothing, or their traffic is counted where it starts.
_FREE = frozenset((
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
    "iota", "opt-barrier", "async-done", "async-update", "copy-done", "all-gather-done", "all-reduce-done",
    "fusion-done", "collective-permute-done", "slice-done", "dynamic-slice-done", "dynamic-update-slice-done",
    "send-done", "recv-done",
))
# Kernels of Pallas and NVIDIA's libraries; other custom calls allocate, or mark shardings.
_KERNEL_TARGET = re.compile(r'custom_call_target="(tpu_custom_call|__cublas|__cudnn)')
_SLICES = ("dynamic-slice", "slice", "gather")


def matmul_flops(module: Module) -> int:
    """Operations of all matrix products on one device, in one step."""
    total = 0
    for computation, instruction, times in module.walk():
        for holder, each in [(computation, instruction), *module.inside(instruction)]:
            if each.opcode == "dot" or (each.opcode == "custom-call" and PRODUCT_TARGET in each.attributes):
                total += times * _dot(holder, each)
            elif each.opcode == "convolution":
                total += times * _convolution(holder, each)
    return total


def memory_bytes(module: Module) -> int:
    """Bytes that one device reads from and writes to its main memory, in one step."""
    return sum(times * moved for _, times, moved in moves(module))


def moves(module: Module) -> Iterator[tuple[Instruction, int, int]]:
    """Every instruction that may use main memory, how often it runs in a step, and the bytes it moves each time."""
    for computation, instruction, times in module.walk():
        if instruction.opcode not in _FREE:
            yield instruction, times, _moved(module, computation, instruction)


def _dot(computation: Computation, dot: Instruction) -> int:
    shape = computation.instructions[dot.operands[0]].arrays[0].shape
    contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', dot.attributes)
    axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])] if contracted else []
    return 2 * math.prod(dot.arrays[0].shape) * math.prod(shape[axis] for axis in axes)


def _convolution(computation: Computation, convolution: Instruction) -> int:
    """2 x pairs of an image's and a kernel's element that meet; padding and dilation do not count."""
    left, right = (computation.instructions[name].arrays[0].shape for name in convolution.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    if labels is None:
        raise ValueError(f"HLO convolution {convolution.name!r}: found no dim_labels")
    image, kernel, out = labels.groups()
    window = _window(convolution.attributes)
    pairs = 1
    for place, digit in enumerate(sorted(label for label in image if label.isdigit())):
        size = {name: values[place] for name, values in window.items()}
        pairs *= _meetings(left[image.index(digit)], convolution.arrays[0].shape[out.index(digit)], size)
    result = convolution.arrays[0].shape
    # Feature groups are in the kernel's input features, batch groups in the result's batch.
    return 2 * result[out.index("b")] * result[out.index("f")] * right[kernel.index("i")] * pairs


def _window(attributes: str) -> dict[str, list[tuple[int, ...]]]:
    """The window of a convolution by dimension: size, stride, pad (low, high), dilation of image and kernel."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    given = dict(re.findall(r"(\w+)=(\S+)", text[1])) if text else {}
    sizes = [int(size) for size in given.get("size", "").split("x") if size]
    ones = "x".join("1" for _ in sizes)
    pads = [tuple(int(side) for side in pad.split("_")) for pad in given.get("pad", "").split("x") if pad]
    return {"size": [(size,) for size in sizes], "pad": pads or [(0, 0)] * len(sizes),
            **{name: [(int(value),) for value in given.get(name, ones).split("x") if value]
               for name in ("stride", "lhs_dilate", "rhs_dilate")}}


def _meetings(image: int, out: int, window: dict[str, tuple[int, ...]]) -> int:
    """Pairs (place of the result, place of the kernel) along one dimension that meet an element of the image."""
    (size,), (stride,), (dilate,), (spread,) = (window[name] for name in ("size", "stride", "lhs_dilate", "rhs_dilate"))
    place = np.arange(out)[:, None] * stride + np.arange(size)[None] * spread - window["pad"][0]
    return int(np.sum((place >= 0) & (place < (image - 1) * dilate + 1) & (place % dilate == 0)))


def _moved(module: Module, computation: Computation, instruction: Instruction) -> int:
    operands = [computation.instructions[name] for name in instruction.operands]
    if instruction.opcode in FUSIONS:
        inner = module.computations[str(instruction.called("calls"))]
        read = sum(_read_in_fusion(module, inner, parameter, _in_memory(operand))
                   for parameter, operand in zip(inner.parameters, operands, strict=True))
        results = instruction.arrays
        if instruction.opcode.endswith("-start"):  # (operands, results, a flag)
            results = results[sum(len(operand.arrays) for operand in operands) : -1]
        return read + _written_by(inner, inner.root, results)
    result = _in_memory(instruction)
    if instruction.opcode == "custom-call":
        if not _KERNEL_TARGET.search(instruction.attributes):
            return 0
        result -= sum(array.bytes for array in instruction.arrays if array.dtype in ("s8", "u8"))  # workspace
    if instruction.opcode in _SLICES:
        return (instruction.bytes if _in_memory(operands[0]) else 0) + result
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1].bytes if result else 0
    if instruction.opcode in ("copy-start", "slice-start", "dynamic-slice-start"):
        # Results: destination, source, a flag.
        destination, source = instruction.arrays[0], operands[0].arrays[0]
        return destination.bytes * ((not destination.on_chip) + (not source.on_chip))
    return result + sum(_in_memory(operand) for operand in operands)


def _in_memory(instruction: Instruction) -> int:
    return sum(array.bytes for array in instruction.arrays if not array.on_chip)


def _read_in_fusion(module: Module, inner: Computation, parameter: Instruction, whole: int) -> int:
    """Bytes that a fusion reads of an operand of `whole` bytes: the slices, nothing where it updates it in place."""
    if not whole:
        return 0
    read = 0
    for user in inner.users[parameter.name]:
        if user.opcode == "bitcast":
            read += _read_in_fusion(module, inner, user, whole)
        elif user.opcode in _SLICES and user.operands[0] == parameter.name:
            read += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue
        elif user.opcode in FUSIONS:
            nested = module.computations[str(user.called("calls"))]
            for place, name in enumerate(user.operands):
                if name == parameter.name:
                    read += _read_in_fusion(module, nested, nested.parameters[place], whole)
        else:
            return whole
    return min(read, whole)


def _written_by(inner: Computation, root: Instruction, arrays: Sequence[Array]) -> int:
    """Bytes that a fusion writes of its results: whole arrays, or the slices that it updates in place."""
    if root.opcode == "tuple":
        parts = [inner.instructions[name] for name in root.operands]
        return sum(_part_written(inner, part, array.bytes) for part, array in zip(parts, arrays, strict=False)
                   if not array.on_chip)
    return sum(_part_written(inner, root, array.bytes) for array in arrays if not array.on_chip)


def _part_written(inner: Computation, part: Instruction, whole: int) -> int:
    while part.opcode in ("bitcast", "copy") and part.operands:
        part = inner.instructions[part.operands[0]]
    if part.opcode == "dynamic-update-slice":
        return min(whole, inner.instructions[part.operands[1]].bytes)
    return whole
