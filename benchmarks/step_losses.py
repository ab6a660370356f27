"""Compares the losses of our first train steps on this machine's accelerator with those on its CPU.

    python benchmarks/step_losses.py [--size full|babyai|tiny] [--precision bf16|f32] [--mode visible|all] [--steps 3]
        [--tolerance 1e-3] [--frames 4] [--batch 2] [--unroll 1] [--depth 0] [--attention auto] [--json PATH]

Both take the same steps on the same rows, each in a process of its own, at the same time. On a machine without an
accelerator both are the CPU's; with JAX_PLATFORMS=cpu one after the other, so that the second finds the program in the
compile cache. Exit status: 0; 1 if a step failed or a loss differs by more than --tolerance, relative.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe, write_json
from train_step import Worker, WorkerError, built
from train_step_worker import Case, Sizes, add_sizes, sizes_of

from agent_jax.json_files import json_path


def start(platform: str, *, sizes: Sizes, case: Case, folder: Path) -> Worker:
    """A process that holds our step, on `platform`, or on JAX's default if that is ""."""
    before = os.environ.get("JAX_PLATFORMS")
    try:
        if platform:
            os.environ["JAX_PLATFORMS"] = platform
        return Worker("step", sizes, case, folder)
    finally:
        os.environ.pop("JAX_PLATFORMS", None)
        if before is not None:
            os.environ["JAX_PLATFORMS"] = before


def take(name: str, worker: Worker, steps: int) -> dict[str, Any]:
    """The losses of so many steps, and what the process reports of itself."""
    found = built(name, worker)
    found["losses"] += [worker.step()["value"] for _ in range(steps - len(found["losses"]))]
    worker.end()
    return found


def main() -> None:
    """Take the steps, print, write, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.set_defaults(batch=2)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="bf16")
    parser.add_argument("--mode", choices=("visible", "all"), default="visible")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of a loss, relative")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    sizes = sizes_of(parser, options)
    if options.steps < 2:
        parser.error(f"--steps: found {options.steps}, expected at least 2, to see an update")
    machine, found = describe(accelerators=False), {}
    case = Case("ours", options.precision, True, options.mode)
    with tempfile.TemporaryDirectory() as scratch:
        begin = functools.partial(start, sizes=sizes, case=case, folder=Path(scratch))
        workers = {"here": begin("")} | ({} if os.environ.get("JAX_PLATFORMS") == "cpu" else {"cpu": begin("cpu")})
        try:
            for name in ("here", "cpu"):
                if name not in workers:
                    workers[name] = begin("cpu")
                found[name] = take(name, workers[name], options.steps)
                print(f"{found[name]['device']}: losses " + ", ".join(f"{loss:.6f}" for loss in found[name]["losses"]),
                      flush=True)
                if options.json:
                    write_json(options.json, machine, found)
        except WorkerError as error:
            sys.exit(f"failed: {error}")
        finally:
            for worker in workers.values():
                worker.kill()
    differences = [abs(loss / expected - 1) for loss, expected in zip(*(each["losses"] for each in found.values()),
                                                                      strict=True)]
    found |= {"largest_difference": max(differences), "tolerance": options.tolerance}
    print(f"largest difference: {max(differences):.1e}, relative; {options.tolerance:.1e} allowed")
    if options.json:
        write_json(options.json, machine, found)
    if not max(differences) <= options.tolerance:  # `not <=` so that NaN fails
        sys.exit(f"failed: {found['here']['device']} has losses {found['here']['losses']}, expected those of the CPU, "
                 f"{found['cpu']['losses']}, to --tolerance={options.tolerance}")


if __name__ == "__main__":
    main()
