"""Search for the fastest mesh, remat policy, batch size and accumulation that fit; every try compiles the train step.

    batch size x mesh shape x remat -> does it divide? -> state alone too large? -> compile -> fits? -> frames a second
                                                                 ^--- more microbatches ---'

Fewer and larger microbatches gather less, and weaker remat policies compute less. So the search finds the largest
microbatch that fits each mesh, and tries a stronger policy only where a weaker one needed several microbatches. It ends
when its time is up, and reports how many combinations are left.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from agent_jax.config import Config
from agent_jax.models.agent import abstract_params
from agent_jax.plan.compiled import CompiledStep, DoesNotFitError
from agent_jax.plan.roofline import Roofline
from agent_jax.plan.topology import Topology
from agent_jax.runtime.sharding import AXES, check_divides, make_mesh, tree_shardings
from agent_jax.train.sharding_report import bytes_by_part

REMAT = ("none", "dots", "full")  # from the most memory to the most work
COPIES = 4  # of the parameters in float32: themselves, both moments, gradients
MOST_TENSOR = 8  # activations are summed over it in every block, too slow beyond a node or a row of a torus


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Mesh, remat policy and batch of one try."""

    mesh: tuple[int, ...]  # by AXES
    remat: str
    batch_size: int
    accumulation: int

    def of(self, config: Config) -> Config:
        """The config with these settings."""
        mesh = dataclasses.replace(config.mesh, **dict(zip(AXES, self.mesh, strict=True)))
        model = dataclasses.replace(config.model, remat=self.remat)
        train = dataclasses.replace(config.train, batch_size=self.batch_size, accumulation=self.accumulation,
                                    rows_per_device=0)
        return dataclasses.replace(config, mesh=mesh, model=model, train=train)


@dataclasses.dataclass(frozen=True)
class MeshOutcome:
    """The result of a candidate; figures only if it fits."""

    candidate: Candidate
    said: str  # "fits", or why not
    memory_bytes: int = 0
    step_seconds: float = 0.0
    frames_per_second: float = 0.0
    bound_by: str = ""
    compile_seconds: float = 0.0


Evaluate = Callable[[Config], tuple[CompiledStep, Roofline]]


def mesh_shapes(devices: int, slices: int = 1) -> list[tuple[int, ...]]:
    """Meshes over `AXES`, one replica a slice, fsdp and tensor powers of two; those without a tensor axis first."""
    local = devices // slices
    powers = [2**n for n in range(local.bit_length())]
    return [(slices, local // (fsdp * tensor), fsdp, tensor) for tensor in powers if tensor <= MOST_TENSOR
            for fsdp in powers if local % (fsdp * tensor) == 0]


def search(config: Config, topology: Topology, devices: Sequence[Any], batch_sizes: Sequence[int], evaluate: Evaluate,
           seconds: float) -> Iterator[MeshOutcome]:
    """Try candidates, and yield each outcome when it is known.

    Args:
        config: of the run, with the vocabulary's size filled in.
        topology: its chip's memory decides what fits where the compiler does not.
        devices: to compile for.
        batch_sizes: global batches to try.
        evaluate: compiles a config.
        seconds: no compile starts after this time; the last outcome then says how many combinations are left.
    """
    end = time.monotonic() + seconds
    shapes = mesh_shapes(len(devices), topology.slices)
    combinations = [(batch, shape, remat) for batch in batch_sizes for shape in shapes for remat in REMAT]
    params = abstract_params(config.model)  # the same for all
    done: set[tuple[int, tuple[int, ...]]] = set()  # fit in one microbatch, or cannot fit
    for number, (batch, shape, remat) in enumerate(combinations):
        if (batch, shape) in done:
            continue
        accumulation: int | None = 1
        while accumulation is not None:
            candidate = Candidate(shape, remat, batch, accumulation)
            if time.monotonic() > end:
                yield MeshOutcome(candidate, f"no time left for this and up to {len(combinations) - number - 1} more")
                return
            outcome = _try(candidate, config, params, topology, devices, evaluate)
            yield outcome
            fits = outcome.said == "fits"
            if (fits and accumulation == 1) or outcome.said.startswith(("does not divide", "state alone")):
                done.add((batch, shape))
            needed = max(2 * accumulation, math.ceil(accumulation * outcome.memory_bytes / topology.chip.hbm_bytes))
            accumulation = None if fits or (batch, shape) in done else _next(batch, shape, needed)


def fastest(outcomes: Sequence[MeshOutcome]) -> list[MeshOutcome]:
    """The outcomes that fit, fastest first."""
    return sorted((outcome for outcome in outcomes if outcome.said == "fits"), key=lambda one: -one.frames_per_second)


def outcome_line(outcome: MeshOutcome) -> str:
    """One line of the table."""
    one = outcome.candidate
    shape = "x".join(map(str, one.mesh))
    head = f"{shape:>10}{one.remat:>7}{one.batch_size:>8,}{one.accumulation:>6}"
    if outcome.said != "fits":
        return f"{head}  {outcome.said}"
    return (f"{head}{outcome.memory_bytes / 2**30:>9.1f}{outcome.step_seconds * 1e3:>11,.1f}"
            f"{outcome.frames_per_second:>11,.0f}  {outcome.bound_by:<13}{outcome.compile_seconds:>6.0f} s")


def table_head() -> str:
    """The line above `outcome_line`s."""
    return (f"mesh: {' x '.join(AXES)}\n{'mesh':>10}{'remat':>7}{'batch':>8}{'acc.':>6}{'GiB':>9}{'step ms':>11}"
            f"{'frames/s':>11}  {'bound by':<13}{'compiled':>8}")


def _next(batch: int, shape: tuple[int, ...], at_least: int) -> int | None:
    """The next number of microbatches that divides the rows of a shard; None if there is none."""
    rows = batch // (math.prod(shape) // shape[-1])
    return next((count for count in range(at_least, rows + 1) if rows % count == 0), None)


def _try(candidate: Candidate, config: Config, params: Any, topology: Topology, devices: Sequence[Any],
         evaluate: Evaluate) -> MeshOutcome:
    config = candidate.of(config)
    hbm = topology.chip.hbm_bytes
    try:
        mesh = make_mesh(config.mesh, devices)
        check_divides(config, mesh)
        state = COPIES * sum(part.bytes_per_device for part in bytes_by_part(params, tree_shardings(mesh, params)))
    except ValueError as error:
        reason = next(line.strip() for line in reversed(str(error).splitlines()))
        return MeshOutcome(candidate, f"does not divide: {reason}")
    if state > hbm:
        return MeshOutcome(candidate, f"state alone needs {state / 2**30:.1f} GiB of {hbm / 2**30:.1f}", state)
    begun = time.monotonic()
    try:
        step, roof = evaluate(config)
    except DoesNotFitError as error:
        return MeshOutcome(candidate, f"does not fit: {error} (compiled {time.monotonic() - begun:.0f} s)",
                           error.needed)
    finally:
        jax.clear_caches()  # traced steps are large
    total = step.memory.total
    if total > hbm:
        return MeshOutcome(candidate, f"does not fit: needs {total / 2**30:.1f} GiB of {hbm / 2**30:.1f}", total)
    return MeshOutcome(candidate, "fits", total, roof.at_peak.step_seconds, roof.at_peak.frames_per_second,
                       roof.bound_by, step.compile_seconds)
