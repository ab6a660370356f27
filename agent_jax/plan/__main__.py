"""Plan a run for a described machine: will it fit, what will it send, how long will it take?

    python -m agent_jax.plan --config configs/tpu_v4.py --topology v4-32 [--global_batch 768] [--search] [--json FILE]
        [--config.FIELD=VALUE ...]

Compiles the train step of `python -m agent_jax.train` for devices that need not be present, with their own compiler
where it is installed. On a machine without such devices that takes an environment of its own:

    python -m venv .venv-tpu && .venv-tpu/bin/pip install -e ".[tpu]"        for TPUs
    python -m venv .venv-cuda && .venv-cuda/bin/pip install -e ".[cuda]"     for NVIDIA GPUs
    .venv-tpu/bin/python -m agent_jax.plan ...

Without that compiler the plan is an estimate, and is marked as one. Neither data nor weights are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from agent_jax.config import Config, from_config_dict
from agent_jax.config.kernels import PLATFORM, kernel_on
from agent_jax.help_pages import help_page
from agent_jax.json_files import check_json_path, write_json
from agent_jax.plan.compiled import CompiledStep, DoesNotFitError, compile_step
from agent_jax.plan.devices import prepare
from agent_jax.plan.report import plan_record, plan_text
from agent_jax.plan.roofline import Roofline, roofline
from agent_jax.plan.row import PlannedRow, planned_row
from agent_jax.plan.search import fastest, outcome_line, search, table_head
from agent_jax.plan.topology import Topology, find_topology
from agent_jax.runtime import command_line
from agent_jax.runtime.command_line import define_config, parse_flags, refuse
from agent_jax.runtime.interrupts import end_at_once

_CONFIG = define_config()
_TOPOLOGY = flags.DEFINE_string("topology", "", "v4-32, v5e-16, v6e-8, h100-8, 2xv4-32, ...; required.")
_BATCH = flags.DEFINE_integer("global_batch", 0, "Rows a step; 0: config.train.batch_size.", lower_bound=0)
_TEXT_IDS = flags.DEFINE_integer("text_ids", 0, "Text ids of the vocabulary; 0: the tokenizer's.", lower_bound=0)
_MFU = flags.DEFINE_float("mfu", 0.4, "Model FLOPs utilisation that the last line assumes.", 0.01, 1.0)
_SEARCH = flags.DEFINE_bool("search", False, "Try meshes, remat policies and batch sizes; print the fastest that fit.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", [], "Global batches to search; default: that of the config.")
_MINUTES = flags.DEFINE_float("search_minutes", 30.0, "A search starts no compile after this time.", 0.0)
_JSON = flags.DEFINE_string("json", "", "Also write the figures to this file.")
flags.adopt_module_key_flags(command_line)  # for --help

ADVICE = ("take more chips, raise config.mesh.fsdp, lower config.train.rows_per_device, or set config.model.remat=full "
          "(--search tries them)")


def check_kernel(config: Config, topology: Topology) -> None:
    """Refuse an attention kernel that the chip does not have.

    Raises:
        ValueError: names the kernel and the chip.
    """
    if PLATFORM.get(config.model.attention, topology.platform) != topology.platform:
        raise ValueError(f"config.model.attention={config.model.attention!r} does not run on {topology.chip.name}; "
                         "pass --config.model.attention=xla")


def with_kernel(row: PlannedRow, topology: Topology, estimate: str) -> PlannedRow:
    """The row with the attention kernel to compile: the chip's, or XLA's for an estimate."""
    best = kernel_on(topology, row.config.model)
    kernel = "xla" if estimate else best
    model = dataclasses.replace(row.config.model, attention=kernel)
    notes = (f"attention by xla in place of {best}, which only the chip's compiler has",) if kernel != best else ()
    return dataclasses.replace(row, config=dataclasses.replace(row.config, model=model), notes=(*row.notes, *notes))


def with_batch(config: Config, rows: int) -> Config:
    """The config with another global batch.

    Raises:
        ValueError: it is not a multiple of the accumulation.
    """
    if rows % config.train.accumulation:
        raise ValueError(f"--global_batch={rows} must be a multiple of config.train.accumulation="
                         f"{config.train.accumulation}")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=rows))


def search_and_print(topology: Topology, row: PlannedRow, devices: Sequence[Any], estimate: str,
                     json_path: Path | None) -> None:
    """Print each outcome when it is known, then those that fit; write all of them to `json_path`.

    Raises:
        ValueError: --batch_sizes are not numbers, or nothing fits.
    """
    if not all(size.isdecimal() and int(size) for size in _BATCH_SIZES.value):
        raise ValueError(f"--batch_sizes={','.join(_BATCH_SIZES.value)}: expected whole numbers above 0, as 64,128")

    def evaluate(config: Config) -> tuple[CompiledStep, Roofline]:
        step = compile_step(config, row, devices, estimate)
        return step, roofline(step, topology, config.train.batch_size * row.size.frames, _MFU.value)

    sizes = [int(size) for size in _BATCH_SIZES.value] or [row.config.train.batch_size]
    print(f"search for {topology.name}, by roofline" + (f"; ESTIMATE: {estimate}" if estimate else ""))
    print(table_head(), flush=True)
    outcomes = []
    for outcome in search(row.config, topology, devices, sizes, evaluate, 60 * _MINUTES.value):
        outcomes.append(outcome)
        print(outcome_line(outcome), flush=True)
    best = fastest(outcomes)
    print("\n".join(["", "fastest first:", table_head(), *map(outcome_line, best)]), flush=True)
    if json_path:
        write_json(json_path, {"topology": topology.name, "estimate": estimate, "row": dataclasses.asdict(row.size),
                               "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
                               "fastest": [dataclasses.asdict(outcome) for outcome in best]})
    if not best:
        raise ValueError(f"--search: none of {len(outcomes)} candidates fits {topology.name}; take more chips, another "
                         "--batch_sizes, or more --search_minutes")


def main(arguments: list[str]) -> None:
    """Compile, print, write. A user error ends with one message and exit code 2."""
    del arguments
    if not _TOPOLOGY.value:
        refuse("--topology is missing; pass one such as --topology=v4-32 (--help)")
    try:
        json_path = check_json_path(_JSON.value, "--json=") if _JSON.value else None
        topology = find_topology(_TOPOLOGY.value)
    except ValueError as error:
        refuse(str(error))
    try:
        config = from_config_dict(_CONFIG.value)
        config = with_batch(config, _BATCH.value or config.train.batch_size)
        check_kernel(config, topology)
        row = planned_row(config, _TEXT_IDS.value)
        devices, estimate = prepare(topology)
        row = with_kernel(row, topology, estimate)
        if _SEARCH.value:
            search_and_print(topology, row, devices, estimate, json_path)
            return
        step = compile_step(row.config, row, devices, estimate)
    except DoesNotFitError as error:
        refuse(f"the step does not fit a {topology.chip.name} of {topology.name}: it {error}; {ADVICE}"
               + help_page("large_runs/plan.md", "Search"))
    except ValueError as error:
        refuse(str(error))
    frames = step.config.train.batch_size * row.size.frames
    record = plan_record(step, topology, row, roofline(step, topology, frames, _MFU.value), _MFU.value)
    print(plan_text(record), flush=True)
    if json_path:
        write_json(json_path, record)
    if not record["memory"]["fits"]:
        needs, has = (record["memory"][name] / 2**30 for name in ("total", "hbm"))
        refuse(f"the step does not fit: {needs:.1f} GiB of {has:.1f} GiB; {ADVICE}"
               + help_page("large_runs/plan.md", "Search"))


if __name__ == "__main__":
    end_at_once()
    app.run(main, flags_parser=parse_flags)
