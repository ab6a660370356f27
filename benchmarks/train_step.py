"""Our train step against the same step in PyTorch: same model, rows, losses and optimizer, taking turns in one run.

    python benchmarks/train_step.py [--size full|babyai|tiny] [--modes visible all] [--only NAME ...] [--steps 3]
        [--frames 4] [--batch 4] [--text 32] [--actions 12] [--remat dots] [--unroll 1] [--depth 0]
        [--json PATH]

    ours-f32, ours-bf16                   agent_jax.train_step: forward, backward, clipping, AdamW, donated state
    exported-f32, -f32-compiled, -bf16, -bf16-compiled
                                          the module of an exported folder (convert/torch_agent.py); fused AdamW;
                                          bf16 by autocast, compiled by torch.compile
    transformers-...                      the same with the blocks of transformers: CLIPEncoderLayer, OPTDecoderLayer

Every case has a process of its own. At most two hold a model at a time: the first case of --only is the reference, and
each other case takes turns with it, a step each. Of both the median is told, and the median of the ratios of a turn.
Before each turn a matrix product of each framework is timed: model FLOPs / time / its rate is the share of the
roofline.
Model FLOPs are those of the matrix products of our step, forward and backward; nothing recomputed is counted. In
brackets stands the processor time over all cores, which hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

from train_step_worker import WARM_STEPS, Case, Sizes, serve

OURS = ("ours-f32", "ours-bf16")
PYTORCH = tuple(f"{model}-{precision}{compiled}" for model in ("exported", "transformers")
                for precision in ("f32", "bf16") for compiled in ("", "-compiled"))
# Of the losses of the first two steps, relative to ours in f32: rounding alone makes 1e-6 and 1e-3 of them.
SAME_LOSS = {"f32": 1e-4, "bf16": 2e-2}


class Worker:
    """A process that holds one case."""

    def __init__(self, kind: str, *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, kind, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self) -> Any:
        """The worker's next answer; what failed there is raised here."""
        try:
            found = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a worker ended with exit code {self._process.exitcode}; -9 usually means that memory "
                               "ran out: take a smaller --batch or --size") from None
        if isinstance(found, Exception):
            raise found
        return found

    def step(self) -> dict[str, float]:
        """Take a step."""
        self._pipe.send("step")
        return self.answer()

    def end(self) -> dict[str, int]:
        """End the process; returns its peak memory."""
        self._pipe.send("end")
        peak = self.answer()
        self._process.join()
        return peak


def case_of(name: str, mode: str) -> Case:
    """The case that `--only` calls so."""
    model, precision, *compiled = name.split("-")
    return Case(model, precision, bool(compiled) or model == "ours", mode)


class Figures:
    """Everything that was timed, by case."""

    def __init__(self, sizes: Sizes, flops: dict[str, int]):
        self.sizes, self.flops = sizes, flops
        self.steps: dict[Case, list[dict[str, float]]] = {}
        self.ratios: dict[Case, list[float]] = {}  # the reference's seconds over the case's, by turn
        self.told: dict[Case, dict[str, Any]] = {}
        self.products: dict[str, list[float]] = {}  # FLOPs a second of "jax-f32", "torch-bf16" ...

    def roofline(self, precision: str) -> float:
        """The best framework's median rate."""
        return max(statistics.median(rates) for name, rates in self.products.items() if name.endswith(precision))

    def record(self, case: Case) -> dict[str, Any]:
        """The entry of a case in the JSON."""
        seconds = statistics.median(step["seconds"] for step in self.steps[case])
        told = self.told[case]
        compile_seconds = told.get("compile_seconds", max(0.0, told["first_step_seconds"] - seconds))
        rate = self.flops[case.mode] / seconds
        return {
            "framework": case.framework, "model": case.model, "precision": case.precision, "compiled": case.compiled,
            "mode": case.mode, "seconds_per_step": seconds,
            "cpu_seconds_per_step": statistics.median(step["cpu_seconds"] for step in self.steps[case]),
            "seconds": [step["seconds"] for step in self.steps[case]],
            "time_of_reference_over_this": statistics.median(self.ratios[case]),
            "model_flops": self.flops[case.mode], "flops_per_second": rate,
            "roofline_share": rate / self.roofline(case.precision), "f32_roofline_share": rate / self.roofline("f32"),
            "compile_seconds": compile_seconds if case.compiled else 0.0, **told,
            **dataclasses.asdict(self.sizes),
        }


def compare(reference: Worker, products: dict[str, Worker], figures: Figures, first: Case, other: Case | None,
            steps: int, folder: Path) -> None:
    """Turns of the reference and one other case; without another the reference alone."""
    worker = None
    if other:
        worker = Worker("step", figures.sizes, other, folder)
        figures.told[other] = worker.answer()
        figures.steps[other], figures.ratios[other] = [], []
    for _ in range(steps):
        for name, product in products.items():
            figures.products.setdefault(name, []).append(product.step()["value"])
        figures.steps[first].append(reference.step())
        if worker and other:
            figures.steps[other].append(worker.step())
            figures.ratios[other].append(figures.steps[first][-1]["seconds"] / figures.steps[other][-1]["seconds"])
    if worker and other:
        figures.told[other] |= worker.end()


def check_losses(told: dict[Case, dict[str, Any]]) -> None:
    """All cases of a mode compute the same.

    Raises:
        ValueError: names two cases whose losses of the first steps differ.
    """
    for case, found in told.items():
        first = next(other for other in told if other.mode == case.mode)
        for step in range(WARM_STEPS if case.precision == first.precision else 1):
            theirs, expected = found["losses"][step], told[first]["losses"][step]
            # The masks of a second step are drawn by each framework itself.
            tolerance = max(SAME_LOSS[case.precision], SAME_LOSS[first.precision]) if step == 0 else 0.1
            if not math.isclose(theirs, expected, rel_tol=tolerance):
                raise ValueError(f"{case.name}, {case.mode}: found a loss of {theirs:.6g} at step {step}, expected "
                                 f"{expected:.6g} as {first.name} has: the two do not compute the same")


def table(figures: Figures) -> str:
    """All cases as lines of a Markdown table."""
    lines = ["| mode | case | s a step (CPU) | reference / this | GFLOP/s | share of roofline | compile s | RSS GiB |",
             "|---|---|---|---|---|---|---|---|"]
    for case in figures.steps:
        entry = figures.record(case)
        lines.append(
            f"| {case.mode} | {case.name} | {entry['seconds_per_step']:.3g} ({entry['cpu_seconds_per_step']:.3g}) "
            f"| {entry['time_of_reference_over_this']:.2f} | {entry['flops_per_second'] / 1e9:.0f} "
            f"| {entry['roofline_share']:.0%} of {case.precision} | {entry['compile_seconds']:.1f} "
            f"| {entry['peak_rss_bytes'] / 2**30:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "babyai", "tiny"), default="full")
    parser.add_argument("--modes", nargs="+", choices=("visible", "all"), default=["visible", "all"])
    parser.add_argument("--only", nargs="+", choices=OURS + PYTORCH, default=[*OURS, *PYTORCH], metavar="NAME",
                        help=f"of {', '.join(OURS + PYTORCH)}; the first is the reference")
    parser.add_argument("--steps", type=int, default=3, help="turns of each pair")
    parser.add_argument("--frames", type=int, default=4, help="images of a row")
    parser.add_argument("--batch", type=int, default=4, help="rows")
    parser.add_argument("--text", type=int, default=32, help="text tokens of a row")
    parser.add_argument("--actions", type=int, default=12, help="action tokens an image")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="dots", help="of ours")
    parser.add_argument("--unroll", type=int, default=1, help="layers in one piece of ours' scan")
    parser.add_argument("--depth", type=int, default=0, help="layers of each stack; 0: as many as the model has")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for flag in ("steps", "frames", "batch", "text", "actions", "unroll"):
        if getattr(options, flag) < 1:
            parser.error(f"--{flag}: found {getattr(options, flag)}, expected at least 1")
    sizes = Sizes(options.size, options.frames, options.batch, options.text, options.actions, options.remat,
                  options.unroll, options.depth)
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(sizes, options.modes, options.only, options.steps, Path(scratch))
    check_losses(figures.told)
    rates = {name: statistics.median(found) for name, found in figures.products.items()}
    print(table(figures))
    for mode, flops in figures.flops.items():
        print(f"{mode}: {flops / 1e9:,.3g} GFLOP a step")
    print("matrix products alone: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()))
    if options.json:
        packages = ("jax", "jaxlib", "torch", "transformers", "optax")
        content = {"cases": [figures.record(case) for case in figures.steps], "matmul_flops_per_second": rates,
                   "cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "load": os.getloadavg(),
                   "versions": {name: importlib.metadata.version(name) for name in packages},
                   "date": datetime.date.today().isoformat()}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def measure(sizes: Sizes, modes: list[str], names: list[str], steps: int, folder: Path) -> Figures:
    """All cases, by mode; each is printed as soon as it is measured."""
    preparing = Worker("prepare", sizes, tuple(modes), folder)
    figures = Figures(sizes, preparing.answer())
    frameworks = dict.fromkeys(case_of(name, "all").framework for name in names)
    precisions = dict.fromkeys(["f32", *(case_of(name, "all").precision for name in names)])
    products = {f"{framework}-{precision}": Worker("matmul", framework, precision, sizes.size)
                for framework in frameworks for precision in precisions}
    for product in products.values():
        product.answer()
    for mode in modes:
        first, *others = [case_of(name, mode) for name in dict.fromkeys(names)]
        reference = Worker("step", sizes, first, folder)
        figures.told[first] = reference.answer()
        figures.steps[first], figures.ratios[first] = [], [1.0]
        for other in others or [None]:
            compare(reference, products, figures, first, other, steps, folder)
            if other:
                print(f"{mode}: {other.name} {figures.steps[other][-1]['seconds']:.3g} s, {first.name} "
                      f"{figures.steps[first][-1]['seconds']:.3g} s, load {os.getloadavg()[0]:.1f}", flush=True)
        figures.told[first] |= reference.end()
    for product in products.values():
        product.end()
    return figures


if __name__ == "__main__":
    main()
