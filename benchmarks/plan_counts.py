"""What is known of every large config before anything is compiled: parameters, operations, state a chip. No times.

    python benchmarks/plan_counts.py [--json FILE]

Operations are counted on the jaxpr of the train step (`agent_jax/plan/flops.py`), the state on its shardings, for the
machine that each config is meant for. Days: the paper's 1.6e20 operations at 40% of the chips' peak, an assumption.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax

from agent_jax.batch import Batch
from agent_jax.config import from_config_dict
from agent_jax.json_files import json_path, write_json
from agent_jax.models.agent import abstract_params
from agent_jax.plan.flops import model_and_recomputed, operations
from agent_jax.plan.roofline import DAY, PAPER_FLOPS
from agent_jax.plan.row import planned_row
from agent_jax.plan.topology import find_topology
from agent_jax.runtime.sharding import make_mesh, microbatches_of_step
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.sharding_report import bytes_by_part
from agent_jax.train.state import abstract_state, state_shardings
from agent_jax.train.step import make_train_step

ROOT = Path(__file__).resolve().parent.parent
RUNS = (("tpu_v4", "", "v4-8"), ("tpu_v4", "", "v4-32"), ("tpu_v4", "", "v4-128"), ("tpu_v4", "opt-1.3b", "v4-128"),
        ("tpu_v4", "opt-6.7b", "v4-128"), ("tpu_v5e", "", "v5e-16"), ("gpu", "one", "h100-1"),
        ("gpu", "node", "h100-8"), ("gpu", "nodes", "h100-32"), ("gpu", "opt-1.3b", "h100-8"),
        ("gpu", "opt-6.7b", "h100-8"))
MFU = 0.4


def counts(file: str, variant: str, name: str) -> dict[str, Any]:
    """One row of the table."""
    spec = importlib.util.spec_from_file_location(file, ROOT / "configs" / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    row, topology = planned_row(from_config_dict(module.get_config(variant))), find_topology(name)
    # XLA's attention, whose jaxpr holds all of its products and none twice.
    config = dataclasses.replace(row.config, model=dataclasses.replace(row.config.model, attention="xla"))
    mesh = make_mesh(config.mesh, jax.devices()[: topology.devices])
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
    state = abstract_state(config, mesh, optimizer)
    step: Any = make_train_step(config, mesh, optimizer)
    found = operations(step.trace(state, Batch.spec(row.size, config.train.batch_size)).jaxpr)
    model, again = model_and_recomputed(found)
    held = sum(part.bytes_per_device for part in bytes_by_part(state, state_shardings(state)))
    gradients = sum(part.bytes_per_device for part in bytes_by_part(state.params, state_shardings(state).params))
    frames = config.train.batch_size * row.size.frames
    days = PAPER_FLOPS / (MFU * topology.chip.bf16_flops * topology.devices) / DAY
    return {"config": f"{file}.py" + (f":{variant}" if variant else ""), "topology": name, "chips": topology.devices,
            "mesh": "x".join(str(size) for size in mesh.shape.values()),
            "microbatches": microbatches_of_step(config.train, mesh),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)), "model_flops": model,
            "recomputed_flops": again, "frames": frames, "state_bytes": held + gradients, "days": days,
            "chip_hours": days * 24 * topology.devices}


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=json_path)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(find_topology(name).devices for _, _, name in RUNS))
    print("| config | topology | chips | mesh | microbatches | parameters | TFLOP a step | made again | GFLOP a frame "
          "| state and gradients, GiB a chip | days at 40% | chip-hours |\n" + "|" + "---|" * 12)
    rows = []
    for run in RUNS:
        one = counts(*run)
        rows.append(one)
        print(f"| `{one['config']}` | {one['topology']} | {one['chips']} | {one['mesh']} | {one['microbatches']} | "
              f"{one['parameters']:,} | {one['model_flops'] / 1e12:,.0f} | {one['recomputed_flops'] / 1e12:,.0f} | "
              f"{one['model_flops'] / one['frames'] / 1e9:,.1f} | {one['state_bytes'] / 2**30:.2f} | "
              f"{one['days']:,.1f} | {one['chip_hours']:,.0f} |", flush=True)
        jax.clear_caches()
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
