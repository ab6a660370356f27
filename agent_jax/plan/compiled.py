"""The real train step, compiled for devices that need not be here; no array is ever made.

    config, mesh -> abstract state, Batch.spec -> trace (operations) -> compile -> memory, collectives, products

TPU: libtpu compiles for a described topology. Without it, and for GPUs, XLA's CPU compiler partitions the same step for
as many fake CPU devices: collectives and products are those of the same partitioner (cpu_estimate.py); memory is the
CPU compiler's, which holds bfloat16 as float32 and fuses little: temporaries are an upper bound.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from agent_jax.batch import Batch
from agent_jax.config import Config
from agent_jax.models.agent import abstract_params
from agent_jax.plan import hlo
from agent_jax.plan.collectives import Collective, collectives
from agent_jax.plan.cpu_estimate import estimated_collectives, estimated_memory_bytes
from agent_jax.plan.flops import KERNEL, model_and_recomputed, operations, total_flops
from agent_jax.plan.messages import captured_stderr
from agent_jax.plan.row import PlannedRow
from agent_jax.plan.traffic import matmul_flops, memory_bytes
from agent_jax.runtime.compiler_options import QUICKLY_COMPILED
from agent_jax.runtime.sharding import make_mesh, row_shards
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.sharding_report import bytes_by_part
from agent_jax.train.state import TrainState, abstract_state, state_shardings
from agent_jax.train.step import make_train_step

REMATERIALISATION = "Involuntary full rematerialization"
# Of TF_CPP_MIN_LOG_LEVEL: XLA says such things as warnings, which are hidden from 2 on.
_WARNINGS_SHOWN = ("", "0", "1")
_SILENT_SINCE = (0, 11)  # of jax: its XLA says it no longer (seen in 0.11.2 and 0.12.0)


class DoesNotFitError(ValueError):
    """The compiler found no program that fits the memory of the device."""

    def __init__(self, message: str, needed: int = 0):
        """With what the compiler needed, in bytes; 0 where it does not say."""
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory."""

    parameters: int
    optimizer: int
    batch: int
    padding: int  # of these arguments, by the layouts that the compiler gives them
    temporary: int  # gradients and activations, and what a collective needs
    output: int  # not in place of an argument
    code: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledStep:
    """What the compiler and the jaxpr tell of one train step."""

    config: Config
    mesh: Mesh
    state: TrainState  # abstract
    model_flops: int  # products of the whole step, over all devices, with XLA's attention and nothing made again
    recomputed_flops: int  # products beyond them: made again for the backward pass, or of scores that nothing sees
    device_flops: int  # products of one device, as compiled
    device_bytes: int  # to and from its memory, as compiled; the least there can be in an estimate
    collectives: list[Collective]
    memory: Memory
    rematerialised: tuple[str, ...]  # what the compiler says that it copies whole to every device
    estimate: str  # why this is an estimate; "" for that of the chip's own compiler
    compile_seconds: float


def compile_step(config: Config, row: PlannedRow, devices: Sequence[Any], estimate: str = "") -> CompiledStep:
    """Compile the train step of a config for devices.

    Args:
        config: with the vocabulary's size filled in; its mesh fits the devices.
        row: the size of its rows.
        devices: of libtpu or of this machine.
        estimate: why the figures are an estimate; "" if these are the devices themselves.

    Raises:
        ValueError: a mesh, a model or a batch that does not divide.
        DoesNotFitError: a step that needs more memory than the device has.
    """
    mesh = make_mesh(config.mesh, devices)
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
    state = abstract_state(config, mesh, optimizer)
    batch = Batch.spec(row.size, config.train.batch_size)

    def trace(config: Config) -> Any:
        step: Any = make_train_step(config, mesh, optimizer)
        return step.trace(state, batch)

    traced = trace(config)
    counted = operations(traced.jaxpr)
    model, recomputed = model_and_recomputed(counted)
    if any(operation.group == KERNEL for operation in counted):  # which makes scores again and out of all remat's sight
        plain = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="xla"))
        model, _ = model_and_recomputed(operations(trace(plain).jaxpr))
        recomputed = total_flops(counted) - model
    # A kernel's products are not in the text of the program; every device runs its share of them.
    kernels = sum(operation.flops for operation in counted if operation.group == KERNEL) // mesh.size
    lowered = traced.lower()
    begun = time.perf_counter()
    with captured_stderr() as said:
        try:
            compiled = lowered.compile(compiler_options=QUICKLY_COMPILED if estimate else None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise too_large(str(error)) from error
    seconds = time.perf_counter() - begun
    module = hlo.parse(compiled.as_text())
    memory = _memory(compiled.memory_analysis(), state, batch, mesh)
    moved, sent = memory_bytes(module), collectives(module, mesh.size)
    if estimate:
        moved = estimated_memory_bytes(module, np.dtype(config.model.dtype).itemsize, memory.parameters)
        sent = estimated_collectives(module, mesh.size)
    return CompiledStep(
        config=config, mesh=mesh, state=state, model_flops=model, recomputed_flops=recomputed,
        device_flops=matmul_flops(module) + kernels, device_bytes=moved, collectives=sent, memory=memory,
        estimate=estimate, compile_seconds=seconds, rematerialised=rematerialised(said.text))


def hidden_warnings() -> str:
    """Why the compiler's warnings would not be seen; "" if they are."""
    if jax.__version_info__ >= _SILENT_SINCE:
        return f"the compiler of jax {jax.__version__} no longer says what it copies whole to every device"
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "")
    return "" if level in _WARNINGS_SHOWN else f"TF_CPP_MIN_LOG_LEVEL={level} hides the compiler's warnings; unset it"


def rematerialised(text: str) -> tuple[str, ...]:
    """What the compiler's log says of arrays that it copies whole to every device to split them another way."""
    lines = [line for line in text.splitlines() if REMATERIALISATION in line]
    found = (re.search(r"for HLO operation:? *(%\S+ = \S+ [\w-]+)", line) for line in lines)
    return tuple(dict.fromkeys(match[1] if match else line for match, line in zip(found, lines, strict=True)))


def too_large(message: str) -> DoesNotFitError:
    """The compiler's refusal with its own figures: what the step needs, and what there is."""
    used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+[KMGT]) (\w+)", message)
    if used is None:
        return DoesNotFitError(message.splitlines()[0][:200])
    needed = int(float(used[1]) * 1024 ** ("KMGT".index(used[2]) + 1))
    return DoesNotFitError(f"needs {used[1]}{used[2]}iB of {used[3]}iB of {used[4].upper()}", needed)


def _memory(analysis: Any, state: TrainState, batch: Batch, mesh: Mesh) -> Memory:
    parts: dict[str, int] = {}
    for part in bytes_by_part(state, state_shardings(state), depth=1):
        parts[part.part] = part.bytes_per_device
    rows = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)) // row_shards(mesh)
    parameters, optimizer = parts["params"], parts["opt_state"] + parts["step"]
    return Memory(
        parameters=parameters, optimizer=optimizer, batch=rows,
        padding=max(0, analysis.argument_size_in_bytes - parameters - optimizer - rows),
        temporary=analysis.temp_size_in_bytes,
        output=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        code=analysis.generated_code_size_in_bytes)
