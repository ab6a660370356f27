"""An agent on a small machine: latency, start-up, memory and size of JAX, PyTorch and ONNX, in one run.

    python benchmarks/edge_latency.py [--checkpoint DIR [--domain NAME]] [--random full|tiny|none] [--threads 1 2]
        [--actions 200] [--precisions f32 f16 int8 int4] [--scratch DIR] [--json PATH]

--checkpoint is a trained agent, such as the one of configs/babyai.py; --random is one of random parameters, by default
of the full size. Both are exported here, without the proof of success that `to-onnx` demands. Each engine acts in a
process of its own, bound to as many cores as it has threads, one after another:

    first action    seconds from the start of the process until the first action, files and compilation included
    p50, p99        milliseconds of an action, when the window is full
    peak            MB of memory that were resident at most
    size            MB on disk of what the engine reads

Goals at full size are printed with the result: int8 at least twice as fast as JAX in f32 and at most 0.35 of its size,
first action within 3 s, at most 600 MB; and an action of the trained agent within 1 ms on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from act_latency import random_checkpoint
from machine import describe, write_json

from agent_jax.bundled import bundled_agent
from agent_jax.convert import to_onnx, to_pytorch
from agent_jax.convert.onnx.quantise import OLDEST
from agent_jax.convert.parity.tolerance import ParityError
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.json_files import json_path

WORKER = Path(__file__).with_name("edge_latency_worker.py")
NOT_READ = {"parity.json", "README.md"}


def exported(checkpoint: Path, scratch: Path, precisions: list[str]) -> dict[str, Path]:
    """The folder of each engine; JAX has the checkpoint itself."""
    folders = {"jax": checkpoint}
    try:
        if not (scratch / "torch").exists():
            to_pytorch.export(checkpoint, scratch / "torch")
        folders["torch"] = scratch / "torch"
    except ParityError as error:  # of gradients of random parameters at full size, which acting does not need
        print(f"torch is left out: {error}", flush=True)
    for precision in precisions:
        folder = folders[f"onnx {precision}"] = scratch / f"onnx-{precision}"
        if not folder.exists():
            to_onnx.export(checkpoint, folder, precision=precision, windows=0, episodes=0, allow_loss=True)
    return folders


def measure(name: str, folder: Path, domain: str, threads: int, actions: int) -> dict[str, float]:
    """Figures of one engine."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads)}
    line = [sys.executable, str(WORKER), name.split()[0], str(folder), domain, str(threads), str(actions),
            str(time.time())]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name}, {threads} threads: the worker ended with status {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(label: str, checkpoint: Path, domain: str, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All engines on one agent, printed."""
    domain = TrainedRun.load(checkpoint).domain(domain).name
    folders = exported(checkpoint, scratch, options.precisions)
    found: dict[str, Any] = {}
    print(f"{label}: domain {domain!r}, load {os.getloadavg()[0]:.1f}")
    print(f"  {'':<10} {'threads':>7} {'p50 ms':>9} {'p99 ms':>9} {'first s':>8} {'peak MB':>8} {'size MB':>8}")
    for threads in options.threads:
        for name, folder in folders.items():
            files = [file for file in folder.glob("**/*") if file.is_file() and file.name not in NOT_READ]
            figures = measure(name, folder, domain, threads, options.actions)
            figures["size_mb"] = sum(file.stat().st_size for file in files) / 1e6
            found.setdefault(name, {})[str(threads)] = figures
            print(f"  {name:<10} {threads:>7} {figures['p50_ms']:>9.2f} {figures['p99_ms']:>9.2f} "
                  f"{figures['first_action_s']:>8.2f} {figures['peak_mb']:>8.0f} {figures['size_mb']:>8.1f}",
                  flush=True)
    return found


def goals(small: dict[str, Any], full: dict[str, Any]) -> dict[str, bool]:
    """Which goals are reached."""
    reached: dict[str, bool] = {}
    if "onnx int8" in full and "onnx f32" in full:
        for threads, int8 in full["onnx int8"].items():
            jax = full["jax"][threads]
            reached[f"full size, {threads} threads: int8 at least 2x faster than JAX"] = (
                2 * int8["p50_ms"] <= jax["p50_ms"])
            reached[f"full size, {threads} threads: first action within 3 s"] = int8["first_action_s"] < 3
            reached[f"full size, {threads} threads: at most 600 MB"] = int8["peak_mb"] < 600
            # A checkpoint also has what acting does not need, so sizes are compared with the f32 graphs.
            reached["full size: int8 at most 0.35 of f32"] = (
                int8["size_mb"] <= 0.35 * full["onnx f32"][threads]["size_mb"])
    if small and "1" in next(iter(small.values())):
        fastest = min(figures["1"]["p50_ms"] for name, figures in small.items() if name.startswith("onnx"))
        reached["trained agent, 1 thread: an action within 1 ms"] = fastest < 1
    return reached


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--domain", default="")
    parser.add_argument("--random", choices=("full", "tiny", "none"), default="full")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="none: only write the folders")
    parser.add_argument("--actions", type=int, default=200)
    parser.add_argument("--precisions", nargs="+", choices=tuple(OLDEST), default=["f32", "f16", "int8"])
    parser.add_argument("--scratch", type=Path, help="where the folders stay, for a later run; else they are removed")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    machine, small, full = describe(accelerators=False), {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.scratch or Path(temporary)
        for part in ("trained", "random"):
            (scratch / part).mkdir(parents=True, exist_ok=True)
        if options.checkpoint:
            folder = Path(bundled_agent(options.checkpoint))
            small = compare("trained", folder, options.domain, scratch / "trained", options)
        if options.random != "none":
            made = scratch / "random" / "checkpoint"
            if not made.exists():
                random_checkpoint(made, options.random, 4, "float32")
            full = compare(f"random, {options.random}", made, "", scratch / "random", options)
    reached = goals(small, full if options.random == "full" else {})
    for goal, is_reached in reached.items():
        print(f"{'reached' if is_reached else 'MISSED '}  {goal}")
    if options.json:
        write_json(options.json, machine, {"trained": small, f"random_{options.random}": full, "goals": reached,
                                           "actions": options.actions, "load_after": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
