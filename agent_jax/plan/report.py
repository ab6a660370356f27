"""A plan as a record for JSON, and as text."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from agent_jax.plan.collectives import by_kind
from agent_jax.plan.compiled import CompiledStep, hidden_warnings
from agent_jax.plan.roofline import PAPER_FLOPS, Roofline
from agent_jax.plan.row import PlannedRow
from agent_jax.plan.topology import Topology
from agent_jax.runtime.sharding import RULES, microbatches_of_step, path_name, row_shards, rule_for
from agent_jax.train.sharding_report import bytes_by_part
from agent_jax.train.state import state_shardings

GIB, MIB = 2**30, 2**20
LARGE_ELEMENTS = 65_536  # as in the test of sharding.RULES
COPIED_BYTES = 64 * MIB  # an array of this size on every device gets a warning


def plan_record(step: CompiledStep, topology: Topology, row: PlannedRow, roof: Roofline, mfu: float) -> dict[str, Any]:
    """All figures of a plan, for JSON."""
    config, chip, memory = step.config, topology.chip, step.memory
    shards, count = row_shards(step.mesh), microbatches_of_step(config.train, step.mesh)
    parts = bytes_by_part(step.state.params, state_shardings(step.state).params, depth=1)
    return {
        "topology": {"name": topology.name, "devices": topology.devices, "hosts": topology.hosts,
                     "slices": topology.slices, "shape": list(topology.shape), "chip": dataclasses.asdict(chip)},
        "estimate": step.estimate,
        "mesh": dict(step.mesh.shape),
        "model": {"dtype": config.model.dtype, "remat": config.model.remat, "attention": config.model.attention,
                  "vocabulary_rows": config.model.language.vocabulary_rows},
        "batch": {"rows": config.train.batch_size, "microbatches": count, "shards": shards,
                  "rows_a_microbatch_and_shard": config.train.batch_size // shards // count,
                  "frames": config.train.batch_size * row.size.frames},
        "row": dataclasses.asdict(row.size),
        "notes": list(row.notes),
        "parameters": {part.part: part.elements for part in parts},
        "memory": {**dataclasses.asdict(memory), "total": memory.total, "hbm": int(chip.hbm_bytes),
                   "fits": memory.total <= chip.hbm_bytes},
        "collectives": [dataclasses.asdict(total) for total in by_kind(step.collectives)],
        "roofline": {**dataclasses.asdict(roof), "bound_by": roof.bound_by,
                     "assumed_mfu": mfu, "device_bytes": step.device_bytes},
        "warnings": warnings(step),
        "compile_seconds": step.compile_seconds,
    }


def warnings(step: CompiledStep) -> list[str]:
    """Arrays that the rules or the compiler copy whole to every device, which costs memory or time."""
    lines = [f"the compiler copies an array whole to every device (involuntary full rematerialization): {text}"
            for text in step.rematerialised]
    lines += [hidden] if (hidden := hidden_warnings()) else []
    spread = {axis: size for axis, size in step.mesh.shape.items() if axis in ("fsdp", "tensor") and size > 1}
    if not spread:
        return lines
    for key_path, leaf in jax.tree_util.tree_leaves_with_path({"params": step.state.params}):
        path, size = path_name(key_path), math.prod(leaf.shape)
        size_bytes = size * leaf.dtype.itemsize
        if rule_for(path) == len(RULES) - 1 and size > LARGE_ELEMENTS:
            lines.append(f"{path} {leaf.shape} matches no rule of sharding.RULES but the default: "
                         f"{size_bytes / MIB:,.1f} MiB on every device, and both moments")
        elif size_bytes >= COPIED_BYTES and math.prod(leaf.sharding.shard_shape(leaf.shape)) == size:
            lines.append(f"{path} {leaf.shape} is whole on every device of this mesh: {size_bytes / MIB:,.1f} MiB, and "
                         "both moments")
    return lines


def plan_text(record: dict[str, Any]) -> str:
    """The lines of a plan."""
    lines = [*_head(record), "", *_memory(record), "", *_work(record), "", *_time(record)]
    return "\n".join([*lines, *(f"warning: {text}" for text in record["warnings"])])


def _head(record: dict[str, Any]) -> list[str]:
    topology, batch, row, model = (record[name] for name in ("topology", "batch", "row", "model"))
    name = topology["name"]
    shape = "x".join(map(str, topology["shape"]))
    slices = f"{topology['slices']} slices of " if topology["slices"] > 1 else ""
    parameters = record["parameters"]
    parts = ", ".join(f"{part} {count:,}" for part, count in parameters.items())
    return [
        f"plan for {name}: {topology['devices']} chip(s), {slices}{shape}, on {topology['hosts']} host(s)",
        *([f"ESTIMATE, not the chip's compiler: {record['estimate']}"] if record["estimate"] else
          [f"compiled by the chip's own compiler in {record['compile_seconds']:.0f} s"]),
        f"mesh: {record['mesh']}; {model['dtype']}, remat {model['remat']}, attention {model['attention']}",
        f"batch: {batch['rows']} rows = {batch['shards']} shard(s) x {batch['rows_a_microbatch_and_shard']} rows x "
        f"{batch['microbatches']} microbatch(es); {batch['frames']:,} frames a step",
        f"row: {row['slots']:,} slots, {row['frames']} images of {row['image_size']} pixels, {row['targets']:,} "
        "targets",
        *(f"  {note}" for note in record["notes"]),
        f"parameters: {sum(parameters.values()):,} ({parts})",
    ]


def _memory(record: dict[str, Any]) -> list[str]:
    memory = record["memory"]
    names = {"parameters": "parameters", "optimizer": "optimizer state", "batch": "batch",
             "padding": "padding of these", "temporary": "gradients, temporaries", "output": "output",
             "code": "code"}
    fits = "fits" if memory["fits"] else "DOES NOT FIT"
    return ["memory of a device" + (" (temporaries: an upper bound)" if record["estimate"] else ""),
            *(f"  {title:<24}{memory[name] / GIB:>9.3f} GiB" for name, title in names.items()),
            f"  {'total':<24}{memory['total'] / GIB:>9.3f} GiB of {memory['hbm'] / GIB:.1f} GiB: {fits}"]


def _work(record: dict[str, Any]) -> list[str]:
    roof, found = record["roofline"], record["collectives"]
    least = " at least" if record["estimate"] else ""
    lines = [
        "work of a step",
        f"  operations of the model {roof['model_flops'] / 1e12:>12,.2f} TFLOP, and "
        f"{roof['recomputed_flops'] / 1e12:,.2f} recomputed for the backward pass",
        f"  products of a device    {roof['device_flops'] / 1e12:>12,.2f} TFLOP, as compiled",
        f"  memory traffic          {roof['device_bytes'] / 1e9:>12,.2f} GB a device{least}; {roof['intensity']:,.0f} "
        "FLOP a byte",
        f"  {'collectives, a device':<24}{'times':>8}{'payload MB':>14}{'sent MB':>12}",
    ]
    lines += [f"  {each['kind']:<24}{each['count']:>8,}{each['bytes'] / 1e6:>14,.1f}{each['sent_bytes'] / 1e6:>12,.1f}"
              for each in found]
    return lines if found else [*lines[:-1], "  collectives             none"]


def _time(record: dict[str, Any]) -> list[str]:
    roof, chip = record["roofline"], record["topology"]["chip"]
    peak = chip["bf16_flops"] if record["model"]["dtype"] == "bfloat16" else chip["f32_flops"]
    lines = [
        f"time of a step by the peak figures of {chip['name']} ({peak / 1e12:.0f} TFLOP/s, "
        f"{chip['hbm_bandwidth'] / 1e12:.2f} TB/s; {chip['source']})",
        f"  compute {_seconds(roof['compute_seconds'])}, HBM {_seconds(roof['hbm_seconds'])}, interconnect "
        f"{_seconds(roof['interconnect_seconds'])}: bound by {roof['bound_by']}",
        f"  {'':<34}{'step':>10}{'frames/s':>12}{'MFU':>7}{'days':>9}{'chip-hours':>13}",
    ]
    for name, title in (("at_peak", "roofline: all three overlap"), ("in_turn", "nothing sent while computing"),
                        ("assumed", f"at an assumed MFU of {roof['assumed_mfu']:.0%}")):
        speed = roof[name]
        lines.append(f"  {title:<34}{_seconds(speed['step_seconds']):>10}{speed['frames_per_second']:>12,.0f}"
                     f"{speed['mfu']:>7.0%}{speed['paper_days']:>9,.1f}{speed['paper_chip_hours']:>13,.0f}")
    return [*lines, f"  days and chip-hours are those of the paper's pre-training, {PAPER_FLOPS:.1e} FLOP"]


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"
