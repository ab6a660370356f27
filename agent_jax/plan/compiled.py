"""The train step, compiled for devices that need not be present; no array is created.

    config, mesh -> abstract state, Batch.spec -> trace (operations) -> compile -> memory, collectives, matrix products

The compiler of the chip compiles for a described topology. Without it, XLA's CPU compiler partitions the same step for
as many fake CPU devices: collectives and matrix products come from the same partitioner (cpu_estimate.py), temporary
memory is an upper bound, since that compiler holds bfloat16 as float32 and fuses little.
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
from agent_jax.models.lora import parameter_shapes
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
_WARNINGS_SHOWN = ("", "0", "1")  # values of TF_CPP_MIN_LOG_LEVEL; from 2 on warnings are hidden
_SILENT_SINCE = (0, 11)  # the version of jax whose XLA no longer logs it


class DoesNotFitError(ValueError):
    """No program fits the memory of the device."""

    def __init__(self, message: str, needed: int = 0):
        """`needed`: bytes that the compiler needed; 0: unknown."""
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory."""

    parameters: int
    optimizer: int
    batch: int
    padding: int  # of these arguments, from the compiler's layouts
    temporary: int  # gradients, activations, buffers of collectives
    output: int  # that does not reuse an argument
    code: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledStep:
    """Figures of one train step from its jaxpr and the compiler."""

    config: Config
    mesh: Mesh
    state: TrainState  # abstract
    model_flops: int  # matrix products of the step, over all devices, with XLA's attention and without recomputation
    recomputed_flops: int  # matrix products beyond them: recomputed, or of masked scores
    device_flops: int  # matrix products of one device, as compiled
    device_bytes: int  # to and from its memory, as compiled; a lower bound in an estimate
    collectives: list[Collective]
    memory: Memory
    rematerialised: tuple[str, ...]  # arrays that the compiler replicates to reshard them
    estimate: str  # why this is an estimate; "": from the chip's own compiler
    compile_seconds: float


def compile_step(config: Config, row: PlannedRow, devices: Sequence[Any], estimate: str = "") -> CompiledStep:
    """Compile the train step of a config for devices.

    Args:
        config: with the vocabulary's size filled in; its mesh fits the devices.
        row: the size of its rows.
        devices: to compile for.
        estimate: why the figures are an estimate; "" if these are the devices themselves.

    Raises:
        ValueError: the mesh, the model or the batch does not divide.
        DoesNotFitError: the step needs more memory than the device has.
    """
    mesh = make_mesh(config.mesh, devices)
    optimizer = make_optimizer(config.optimizer, config.train.steps, parameter_shapes(config))
    state = abstract_state(config, mesh, optimizer)
    batch = Batch.spec(row.size, config.train.batch_size)

    def trace(config: Config) -> Any:
        step: Any = make_train_step(config, mesh, optimizer)
        return step.trace(state, batch)

    traced = trace(config)
    counted = operations(traced.jaxpr)
    model, recomputed = model_and_recomputed(counted)
    if any(operation.group == KERNEL for operation in counted):  # it recomputes scores outside of remat
        plain = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="xla"))
        model, _ = model_and_recomputed(operations(trace(plain).jaxpr))
        recomputed = total_flops(counted) - model
    # The program's text does not hold the products of kernels; every device runs its share of them.
    kernels = sum(operation.flops for operation in counted if operation.group == KERNEL) // mesh.size
    lowered = traced.lower()
    begun = time.perf_counter()
    with captured_stderr() as log:
        try:
            compiled = lowered.compile(compiler_options=QUICKLY_COMPILED if estimate else None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise too_large(str(error)) from error
    seconds = time.perf_counter() - begun
    module = hlo.parse(compiled.as_text())
    memory = _memory(compiled.memory_analysis(), state, batch, mesh)
    if estimate:
        moved = estimated_memory_bytes(module, np.dtype(config.model.dtype).itemsize, memory.parameters)
        sent = estimated_collectives(module, mesh.size)
    else:
        moved, sent = memory_bytes(module), collectives(module, mesh.size)
    return CompiledStep(
        config=config, mesh=mesh, state=state, model_flops=model, recomputed_flops=recomputed,
        device_flops=matmul_flops(module) + kernels, device_bytes=moved, collectives=sent, memory=memory,
        estimate=estimate, compile_seconds=seconds, rematerialised=rematerialised(log.text))


def hidden_warnings() -> str:
    """Why the compiler's warnings are not visible; "" if they are."""
    if jax.__version_info__ >= _SILENT_SINCE:
        return f"the compiler of jax {jax.__version__} no longer logs arrays that it copies whole to every device"
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "")
    return "" if level in _WARNINGS_SHOWN else f"TF_CPP_MIN_LOG_LEVEL={level} hides the compiler's warnings; unset it"


def rematerialised(text: str) -> tuple[str, ...]:
    """The arrays that, by the compiler's log, are copied whole to every device to reshard them."""
    lines = [line for line in text.splitlines() if REMATERIALISATION in line]
    found = (re.search(r"for HLO operation:? *(%\S+ = \S+ [\w-]+)", line) for line in lines)
    return tuple(dict.fromkeys(match[1] if match else line for match, line in zip(found, lines, strict=True)))


def too_large(message: str) -> DoesNotFitError:
    """The compiler's error with its figures: memory needed and available."""
    used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+[KMGT]) (\w+)", message)
    if used is None:
        return DoesNotFitError(message.splitlines()[0][:200])
    needed = int(float(used[1]) * 1024 ** ("KMGT".index(used[2]) + 1))
    return DoesNotFitError(f"needs {used[1]}{used[2]}iB of {used[3]}iB of {used[4].upper()}", needed)


def _memory(analysis: Any, state: TrainState, batch: Batch, mesh: Mesh) -> Memory:
    parts = {part.part: part.bytes_per_device for part in bytes_by_part(state, state_shardings(state), depth=1)}
    rows = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)) // row_shards(mesh)
    parameters, optimizer = parts["params"], parts["opt_state"] + parts["step"]
    return Memory(
        parameters=parameters, optimizer=optimizer, batch=rows,
        padding=max(0, analysis.argument_size_in_bytes - parameters - optimizer - rows),
        temporary=analysis.temp_size_in_bytes,
        output=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        code=analysis.generated_code_size_in_bytes)
