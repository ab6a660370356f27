"""Our train step against the same step in PyTorch: same model, rows, losses and optimizer, taking turns in one run.

    python benchmarks/train_step.py [--size full|babyai|tiny] [--modes visible all] [--only NAME ...] [--steps 3]
        [--frames 4] [--batch 4] [--text 32] [--actions 12] [--remat dots] [--unroll 1] [--depth 0]
        [--attention auto] [--per-turn 1] [--no-products] [--together] [--json PATH]

    ours-f32, ours-bf16                   agent_jax.train.step: forward, backward, clipping, AdamW, donated state
    unrolled-f32, unrolled-bf16           the same with config.model.unroll of all layers
    exported-f32, -f32-compiled, -bf16, -bf16-compiled
                                          the module of an exported folder (convert/pytorch/torch_agent.py); fused
                                          AdamW; bf16 by autocast, compiled by torch.compile; on a GPU, f32 is TF32 in
                                          both
    transformers-...                      the same with the blocks of transformers: CLIPEncoderLayer, OPTDecoderLayer,
                                          with PyTorch's attention, which needs no mask here (flash on a GPU)

Every case has a process of its own. At most two hold a model at a time: the first case of --only is the reference, and
each other case takes turns with it, --per-turn steps each. Of both the median is told, and the median of the ratios of
a turn. Before each turn a large square matrix product of each framework is timed: model FLOPs / time / its rate is the
share of the roofline. So are the products of our own step, each by itself: their time / the step's is the share of
products. MFU is model FLOPs / time / the peak in the data sheet of the GPU, where it is known (plan/chips.py).
Model FLOPs are those of the matrix products of our step, forward and backward; nothing recomputed is counted. In
brackets stands the processor time over all cores, which hardly depends on what else the machine does.

A case that fails, or whose process is killed as memory runs out, is told, and the others go on; so is one whose losses
differ from the reference's. The JSON file is written after each turn, so a run that is cut off leaves what it measured.
Exit status: 0; 1 if a case failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import math
import multiprocessing
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train_step_worker import OUR_MODELS, WARM_STEPS, Case, Sizes, add_sizes, serve, sizes_of

from agent_jax.json_files import json_path, write_json
from agent_jax.plan.chips import CHIPS, Chip
from agent_jax.runtime.processor import cores

OURS = tuple(f"{model}-{precision}" for model in OUR_MODELS for precision in ("f32", "bf16"))
PYTORCH = tuple(f"{model}-{precision}{compiled}" for model in ("exported", "transformers")
                for precision in ("f32", "bf16") for compiled in ("", "-compiled"))
# Of the losses of the first two steps, relative to ours in f32: rounding alone makes 1e-6 and 1e-3 of them.
SAME_LOSS = {"f32": 1e-4, "bf16": 2e-2}


class WorkerError(RuntimeError):
    """A worker failed, or ended."""


class Worker:
    """A process that holds one case."""

    def __init__(self, kind: str, *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, kind, arguments), daemon=True)
        self._process.start()
        self.failed = False
        theirs.close()

    def answer(self) -> Any:
        """The worker's next answer; what failed there is raised here, as WorkerError."""
        try:
            found = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            found = RuntimeError(f"a worker ended with exit code {self._process.exitcode}; -9 usually means that "
                                 "memory ran out: take a smaller --batch or --size")
        if isinstance(found, Exception):
            self.failed = True
            raise WorkerError(str(found)) from found
        return found

    def step(self, count: int = 1) -> dict[str, Any]:
        """Take so many steps; their mean, and the last one's value."""
        self._send(count)
        return self.answer()

    def end(self) -> None:
        """End the process."""
        self._send(0)
        self._process.join()

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()

    def _send(self, count: int) -> None:
        with contextlib.suppress(ConnectionError):  # that it has ended is told by `answer`
            self._pipe.send(count)


def built(name: str, worker: Worker) -> Any:
    """The first answer of a worker; says how long it took to come, since some compile for minutes."""
    begun = time.perf_counter()
    told = worker.answer()
    print(f"{name}: ready after {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return told


def case_of(name: str, mode: str) -> Case:
    """The case that `--only` calls so."""
    model, precision, *compiled = name.split("-")
    return Case(model, precision, bool(compiled) or model in OUR_MODELS, mode)


class Figures:
    """Everything that was timed, by case."""

    def __init__(self, sizes: Sizes, flops: dict[str, int], path: Path | None):
        self.sizes, self.flops, self.path = sizes, flops, path
        self.steps: dict[Case, list[dict[str, float]]] = {}
        self.ratios: dict[Case, list[float]] = {}  # the reference's seconds over the case's, by turn
        self.told: dict[Case, dict[str, Any]] = {}
        self.square: dict[str, list[float]] = {}  # FLOPs a second of "jax-f32", "torch-bf16" ...
        self.products: dict[Case, list[float]] = {}  # seconds of all products of a step of ours, each alone
        self.failed: list[str] = []

    def drop(self, case: Case) -> None:
        """Forget a case, of which not everything is known."""
        for found in (self.steps, self.ratios, self.told):
            found.pop(case, None)

    def roofline(self, precision: str) -> float:
        """The best framework's median rate."""
        return max(statistics.median(rates) for name, rates in self.square.items() if name.endswith(precision))

    def products_share(self, case: Case, seconds: float) -> float | None:
        """What a step's products, alone, would take of its time; None where no case of ours says how long that is."""
        found = [taken for ours, taken in self.products.items()
                 if (ours.mode, ours.precision) == (case.mode, case.precision)]
        return statistics.median(found[0]) / seconds if found else None

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
            "products_share": self.products_share(case, seconds), "mfu": mfu(rate, told["device"], case.precision),
            "compile_seconds": compile_seconds if case.compiled else 0.0, **told,
            **{name: value for name, value in self.steps[case][-1].items() if name.startswith("peak_")},
            **dataclasses.asdict(self.sizes),
        }

    def save(self) -> None:
        """Write what is known so far to the JSON file."""
        if self.path is None:
            return
        packages = ("jax", "jaxlib", "torch", "transformers", "optax")
        write_json(self.path, {
            "cases": [self.record(case) for case, steps in self.steps.items() if steps],
            "matmul_flops_per_second": {name: statistics.median(found) for name, found in self.square.items()},
            "products_seconds": {f"{case.name}-{case.mode}": statistics.median(found)
                                 for case, found in self.products.items()},
            "cores": cores(), "machine": platform.machine(), "load": os.getloadavg(),
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "failed": self.failed, "date": datetime.date.today().isoformat()})


def gpu_of(device_kind: str) -> Chip | None:
    """The GPU of a device kind such as "NVIDIA A100-SXM4-80GB"; None if it is not in `CHIPS`."""
    words = re.split(r"[^a-z0-9]+", device_kind.lower())
    return next((chip for name, chip in CHIPS.items() if "nvidia" in words and name in words), None)


def mfu(flops_per_second: float, device: str, precision: str) -> float | None:
    """Model FLOPs utilisation: of the peak in the data sheet of a GPU; None for other devices."""
    chip = gpu_of(device)
    if chip is None:
        return None
    return flops_per_second / (chip.bf16_flops if precision == "bf16" else chip.f32_flops)


def compare(reference: Worker, worker: Worker | None, alone: Alone, figures: Figures, first: Case, other: Case | None,
            steps: int, per_turn: int) -> None:
    """Turns of the reference and one other case, held by `worker`; without another the reference alone.

    Raises:
        WorkerError: one of them failed; the figures of the other case are dropped.
    """
    try:
        if worker and other:
            figures.told[other] = built(other.name, worker)
            figures.steps[other], figures.ratios[other] = [], []
        for _ in range(steps):
            alone.take(figures)
            figures.steps[first].append(reference.step(per_turn))
            if worker and other:
                figures.steps[other].append(worker.step(per_turn))
                figures.ratios[other].append(figures.steps[first][-1]["seconds"] / figures.steps[other][-1]["seconds"])
            figures.save()
        if worker:
            worker.end()
    except WorkerError:
        if worker and other:
            worker.kill()
            figures.drop(other)
        raise


class Alone:
    """Matrix products by themselves: square ones of the frameworks of some cases, and those of our own steps."""

    def __init__(self, sizes: Sizes, cases: list[Case], *, products: bool):
        precisions = tuple(dict.fromkeys(["f32", *(case.precision for case in cases)]))
        self._square = {framework: Worker("square", framework, precisions, sizes.size)
                        for framework in dict.fromkeys(case.framework for case in cases)}
        self._products = {case: Worker("products", sizes, case) for case in cases if products and case.model == "ours"}

    def wait(self) -> None:
        """Until all of them have compiled."""
        for worker in self.workers():
            built("products alone", worker)

    def take(self, figures: Figures) -> None:
        """Time them all once more."""
        for framework, worker in self._square.items():
            for precision, rate in worker.step()["value"].items():
                figures.square.setdefault(f"{framework}-{precision}", []).append(rate)
        for case, worker in self._products.items():
            figures.products.setdefault(case, []).append(worker.step()["value"])

    def workers(self) -> list[Worker]:
        """Their processes."""
        return [*self._square.values(), *self._products.values()]


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
    lines = ["| mode | case | s a step (CPU) | reference / this | GFLOP/s | share of roofline | of products | MFU "
             "| compile s | RSS GiB | GPU GiB |", "|---" * 11 + "|"]
    share = lambda value: "" if value is None else f"{value:.0%}"  # noqa: E731
    for case in figures.steps:
        entry = figures.record(case)
        rss, device = entry["peak_rss_bytes"], entry.get("peak_device_bytes")
        lines.append(
            f"| {case.mode} | {case.name} | {entry['seconds_per_step']:.3g} ({entry['cpu_seconds_per_step']:.3g}) "
            f"| {entry['time_of_reference_over_this']:.2f} | {entry['flops_per_second'] / 1e9:,.0f} "
            f"| {share(entry['roofline_share'])} of {case.precision} | {share(entry['products_share'])} "
            f"| {share(entry['mfu'])} | {entry['compile_seconds']:.1f} | {f'{rss / 2**30:.2f}' if rss else ''} "
            f"| {f'{device / 2**30:.2f}' if device else ''} |")
    return "\n".join(lines)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--modes", nargs="+", choices=("visible", "all"), default=["visible", "all"])
    parser.add_argument("--only", nargs="+", choices=OURS + PYTORCH, default=[*OURS, *PYTORCH], metavar="NAME",
                        help=f"of {', '.join(OURS + PYTORCH)}; the first is the reference")
    parser.add_argument("--steps", type=int, default=3, help="turns of each pair")
    parser.add_argument("--per-turn", type=int, default=1, help="steps of a case in its turn; 20 suit a GPU")
    parser.add_argument("--no-products", dest="products", action="store_false",
                        help="leave out the products of our step alone (step_products.py times them too)")
    parser.add_argument("--together", action="store_true", help="compile the reference and the first case beside it at "
                        "the same time: less to wait for on many cores, but each takes longer")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    sizes = sizes_of(parser, options)
    for flag in ("steps", "per_turn"):
        if getattr(options, flag) < 1:
            parser.error(f"--{flag.replace('_', '-')}: found {getattr(options, flag)}, expected at least 1")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            figures = measure(sizes, options, Path(scratch))
        except WorkerError as error:
            sys.exit(f"failed: {error}")
    try:
        check_losses(figures.told)
    except ValueError as error:
        figures.failed.append(str(error))
    rates = {name: statistics.median(found) for name, found in figures.square.items()}
    products = {case: statistics.median(found) for case, found in figures.products.items()}
    print(table(figures))
    for mode, flops in figures.flops.items():
        print(f"{mode}: {flops / 1e9:,.3g} GFLOP a step")
    print("one large matrix product: " + ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items()))
    for case, seconds in products.items():
        print(f"all products of {case.name} alone, {case.mode}: {seconds:.3g} s, "
              f"{figures.flops[case.mode] / seconds / 1e9:,.0f} GFLOP/s")
    figures.save()
    if figures.failed:
        sys.exit("\n".join(("failed:", *figures.failed)))


def measure(sizes: Sizes, options: argparse.Namespace, folder: Path) -> Figures:
    """All cases, by mode; each is printed as soon as it is measured."""
    preparing = Worker("prepare", sizes, tuple(options.modes), folder)
    cases = {mode: [case_of(name, mode) for name in dict.fromkeys(options.only)] for mode in options.modes}
    first = cases[options.modes[0]][0]
    # Ours needs nothing of what is prepared.
    begun = Worker("step", sizes, first, folder) if options.together and first.framework == "jax" else None
    figures = Figures(sizes, built("parameters, masks, FLOPs", preparing), options.json)
    for mode in options.modes:
        try:
            measure_mode(figures, cases[mode], options, folder, begun)
        except WorkerError as error:
            figures.failed.append(f"{mode}: {error}")
        begun = None
    return figures


def measure_mode(figures: Figures, cases: list[Case], options: argparse.Namespace, folder: Path,
                 reference: Worker | None = None) -> None:
    """The cases of one mode; the first is the reference, which is started again where another's failure ended it.

    Args:
        figures: to which those of these cases are added.
        cases: of one mode.
        options: of the command.
        folder: of what was prepared.
        reference: its worker, where it is started already.

    Raises:
        WorkerError: the reference fails by itself; what was measured is in the figures.
    """
    first, *others = cases
    alone, worker, is_built = Alone(figures.sizes, cases, products=options.products), None, False
    figures.steps[first], figures.ratios[first] = [], [1.0]
    start = functools.partial(Worker, "step", figures.sizes)
    try:
        if not options.together:
            alone.wait()
        for other in others or [None]:
            reference = reference or start(first, folder)
            worker = start(other, folder) if other and options.together else None
            if not is_built:
                figures.told[first], is_built = built(first.name, reference), True
            if options.together and not figures.steps[first]:
                alone.wait()
            worker = worker or (start(other, folder) if other else None)
            try:
                compare(reference, worker, alone, figures, first, other, options.steps, options.per_turn)
            except WorkerError as error:
                if other is None or any(each.failed for each in alone.workers()):
                    raise
                figures.failed.append(f"{first.mode}: {other.name} beside {first.name}: {error}")
                print(figures.failed[-1], file=sys.stderr, flush=True)
                if reference.failed:
                    reference, is_built = None, False
                continue
            if other:
                print(f"{first.mode}: {other.name} {figures.steps[other][-1]['seconds']:.3g} s, {first.name} "
                      f"{figures.steps[first][-1]['seconds']:.3g} s, load {os.getloadavg()[0]:.1f}", flush=True)
        if reference:
            reference.end()
    finally:
        if not figures.steps[first]:
            figures.drop(first)
        for each in (*alone.workers(), *filter(None, (reference, worker))):
            each.kill()


if __name__ == "__main__":
    main()
