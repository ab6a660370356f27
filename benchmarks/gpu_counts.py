"""Counts what our train step does on a GPU, by kind of operation, from the program that XLA's GPU compiler makes.

    .venv-cuda/bin/python benchmarks/gpu_counts.py [--topology h200-1] [--modes visible all] [--ways unrolled scanned]
        [--size full|babyai|tiny] [--frames 4] [--batch 64] [--text 32] [--actions 12] [--remat dots] [--depth 0]
        [--json PATH]

No GPU is needed; docs/large_runs/plan.md says how to make .venv-cuda. The steps are those of gpu_session.py. For each
kind of operation: how many kernels run, what they move through memory, and the least time that takes, by the card's
data sheet: the longer of FLOPs / peak and bytes / bandwidth. "In all" assumes that kinds run one after another.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe, write_json
from step_profile import instructions
from train_step_worker import Case, Sizes, add_sizes, fake_batch, model_products, run_config, sizes_of

from agent_jax.config.kernels import kernel_on
from agent_jax.json_files import json_path
from agent_jax.models.agent import abstract_params
from agent_jax.plan import hlo
from agent_jax.plan.devices import prepare
from agent_jax.plan.flops import KERNEL, operations, total_flops
from agent_jax.plan.topology import Topology, find_topology
from agent_jax.plan.traffic import matmul_flops, moves
from agent_jax.runtime.sharding import make_mesh
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.state import abstract_state
from agent_jax.train.step import make_train_step

WAYS = {"unrolled": "unrolled", "scanned": "ours"}  # the names of train_step.py
PRODUCT, ATTENTION = "matrix product", "attention kernel"  # of step_profile.KINDS


def counts(sizes: Sizes, case: Case, topology: Topology, devices: list[Any]) -> dict[str, Any]:
    """The figures of one step, compiled for a described GPU."""
    config = run_config(sizes, case)
    model = dataclasses.replace(config.model, attention=kernel_on(topology, config.model))
    config = dataclasses.replace(config, model=model)
    mesh = make_mesh(config.mesh, devices)
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(model))
    step: Any = make_train_step(config, mesh, optimizer)
    traced = step.trace(abstract_state(config, mesh, optimizer), fake_batch(sizes, config))
    lowered, begun = traced.lower(), time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - begun
    text = compiled.as_text()
    module, known, chip = hlo.parse(text), instructions(text), topology.chip
    flops = {PRODUCT: matmul_flops(module),
             ATTENTION: sum(each.flops for each in operations(traced.jaxpr) if each.group == KERNEL)}
    kinds: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"kernels": 0, "bytes": 0})
    for instruction, times, moved in moves(module):
        if moved:
            kind = kinds[known[instruction.name].kind("")]
            kind["kernels"] += times
            kind["bytes"] += times * moved
    peak = chip.bf16_flops if case.precision == "bf16" else chip.f32_flops
    for name, kind in kinds.items():
        kind["flops"] = flops.get(name, 0)
        kind["least_seconds"] = max(kind["flops"] / peak, kind["bytes"] / chip.hbm_bandwidth)
    model_flops = total_flops(model_products(sizes, config))
    least = sum(kind["least_seconds"] for kind in kinds.values())
    memory = compiled.memory_analysis()
    return {"mode": case.mode, "model": case.model, "attention": model.attention, "model_flops": model_flops,
            "bytes": sum(kind["bytes"] for kind in kinds.values()), "least_seconds": least,
            "mfu_at_least_seconds": model_flops / peak / least, "compile_seconds": seconds,
            "memory_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
            "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1]["least_seconds"]))}


def table(found: list[dict[str, Any]]) -> str:
    """A row of each kind of operation in each step."""
    lines = ["| step | kind | kernels | TFLOP | GB | least ms |", "|---|---|---:|---:|---:|---:|"]
    for step in found:
        name = f"{next(way for way, model in WAYS.items() if model == step['model'])}, {step['mode']}"
        kinds = step["kinds"]
        lines += [f"| {name} | {kind} | {each['kernels']:,} | {each['flops'] / 1e12:.2f} | {each['bytes'] / 1e9:.1f} "
                  f"| {1e3 * each['least_seconds']:.1f} |" for kind, each in kinds.items()]
        kernels, flops = (sum(each[key] for each in kinds.values()) for key in ("kernels", "flops"))
        lines.append(f"| **{name}** | in all: {step['mfu_at_least_seconds']:.0%} MFU, "
                     f"{step['memory_bytes'] / 2**30:.1f} GiB | {kernels:,} | {flops / 1e12:.2f} "
                     f"| {step['bytes'] / 1e9:.1f} | {1e3 * step['least_seconds']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Compile, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.set_defaults(batch=64)
    parser.add_argument("--topology", default="h200-1", help="one GPU: a100-1, h100-1 or h200-1")
    parser.add_argument("--modes", nargs="+", choices=("visible", "all"), default=["visible", "all"])
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=[*WAYS])
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    sizes = sizes_of(parser, options)
    try:
        topology = find_topology(options.topology)
    except ValueError as error:
        parser.error(str(error))
    if topology.is_tpu or topology.devices != 1:
        parser.error(f"--topology: found {topology.name}, expected one GPU: a100-1, h100-1 or h200-1")
    devices, estimate = prepare(topology)
    if estimate:
        sys.exit(f"{Path(__file__).name} needs the GPU's own compiler: {estimate}")
    machine = describe(accelerators=False)
    found = []
    for mode in options.modes:
        for way in options.ways:
            found.append(counts(sizes, Case(WAYS[way], "bf16", True, mode), topology, devices))
            print(f"{way}, {mode}: compiled in {found[-1]['compile_seconds']:.0f} s", file=sys.stderr, flush=True)
            if options.json:
                write_json(options.json, machine, {"topology": topology.name, "steps": found})
    print(table(found))


if __name__ == "__main__":
    main()
