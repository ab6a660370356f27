"""Time of a train step against images, window, batch, text and model size, with fitted exponents, on this machine.

    python benchmarks/scaling_curves.py [--size small|full] [--curves NAME ...] [--rounds 3] [--quick] [--json PATH]

    window   steps of a sample, one sample a row             frames   images of a row, packed of samples of two steps
    batch    rows                                            text     tokens of the instruction
    width    of encoder, language model and MAE decoder      depth    layers of encoder and language model

One size changes at a time; the others are those of the base case. Every point is compiled, then the points of a curve
take turns, a step each, `--rounds` times, and the fastest of each counts: other programs only ever make one slower.
Exponents are least squares on logarithms: time ~ size^a. Beside that of the time stand those of the step's FLOPs (of
its matrix products, counted on the jaxpr) and of time / FLOPs. The last is 0 where time grows like the work, negative
where a small case pays for what does not grow with it, and positive where cost grows faster than the work: told apart
by `steep`, of which the fit over the two largest points decides. In brackets the same by processor time over all cores,
which hardly depends on what else the machine does (and says nothing of a GPU). Temporary memory is XLA's plan for the
compiled step.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from machine import describe, write_json

from agent_jax.batch import Batch, RowSize
from agent_jax.config import Config, from_config_dict, presets, to_config_dict
from agent_jax.data.pipeline.layout import Step, Window, lay_out, stack, window_usage
from agent_jax.json_files import json_path
from agent_jax.models.agent import abstract_params, training_visual_tokens
from agent_jax.plan.flops import operations, total_flops
from agent_jax.runtime.host_memory import tune_heap
from agent_jax.runtime.sharding import make_mesh, shard_batch
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.state import abstract_state
from agent_jax.train.step import make_train_step

ACTION_TOKENS = 12  # of a step, as in Language-Table
HEAD_WIDTH = 64
PACKED_WINDOW = 2  # steps of a sample on the curve `frames`
STEEP = 0.1  # an exponent of time / FLOPs above this is no noise: 7% more a FLOP at twice the size
WARM_STEPS = 1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """One case."""

    image_size: int  # pixels, in patches of 16
    width: int
    depth: int
    mae_depth: int
    vocabulary: int
    window: int = 4
    samples: int = 1  # of a row
    batch: int = 4
    text: int = 32


BASES = {
    "quick": Sizes(image_size=64, width=64, depth=2, mae_depth=1, vocabulary=1_600),
    "small": Sizes(image_size=112, width=256, depth=4, mae_depth=2, vocabulary=1_600),
    "full": Sizes(image_size=224, width=768, depth=12, mae_depth=5, vocabulary=51_578, batch=2),
}
# By curve: the values at the sizes small, quick and full, and how a value changes the base case.
CURVES: dict[str, tuple[dict[str, tuple[int, ...]], Callable[[Sizes, int], Sizes]]] = {
    "window": ({"small": (2, 4, 8, 16), "quick": (1, 2, 4), "full": (1, 2, 4, 9)},
               lambda base, value: dataclasses.replace(base, window=value)),
    "frames": ({"small": (2, 4, 8, 16), "quick": (2, 4, 8), "full": (2, 4, 8)},
               lambda base, value: dataclasses.replace(base, window=PACKED_WINDOW, samples=value // PACKED_WINDOW)),
    "batch": ({"small": (1, 2, 4, 8), "quick": (1, 2, 4), "full": (1, 2, 4)},
              lambda base, value: dataclasses.replace(base, batch=value)),
    "text": ({"small": (32, 128, 512, 1024), "quick": (16, 64, 256), "full": (32, 256, 1024)},
             lambda base, value: dataclasses.replace(base, text=value)),
    "width": ({"small": (128, 256, 384, 512), "quick": (64, 128, 192), "full": (384, 768)},
              lambda base, value: dataclasses.replace(base, width=value)),
    "depth": ({"small": (1, 2, 4, 8), "quick": (1, 2, 4), "full": (3, 6, 12)},
              lambda base, value: dataclasses.replace(base, depth=value)),
}


def run_config(sizes: Sizes) -> Config:
    """The run of a case: f32, the language model sees all patches, nothing is recomputed."""
    draft: presets.Draft = to_config_dict(Config()).unlock()
    model = draft.model
    model.vision.image_size = sizes.image_size
    for part, depth in ((model.vision, sizes.depth), (model.language, sizes.depth), (model.mae, sizes.mae_depth)):
        part.width, part.depth = sizes.width, depth
        part.heads, part.mlp_width = sizes.width // HEAD_WIDTH, 4 * sizes.width
    model.language.vocabulary_size, model.language.dropout = sizes.vocabulary, 0.0
    draft.train.batch_size, draft.train.steps = sizes.batch, 1_000
    draft.mesh.data = 1
    return from_config_dict(draft)


def rows(sizes: Sizes, config: Config) -> Batch:
    """Full rows of random samples; every row is as long as its samples need."""
    random = np.random.default_rng(0)
    visual_tokens, patches = training_visual_tokens(config.model), config.model.vision.patches

    def ids(count: int) -> np.ndarray:
        return random.integers(0, sizes.vocabulary, count, dtype=np.int32)

    def sample() -> Window:
        shape = (sizes.image_size, sizes.image_size, 3)
        steps = tuple(Step((random.integers(0, 256, shape, dtype=np.uint8),), ids(0), ids(ACTION_TOKENS))
                      for _ in range(sizes.window))
        return Window(0, ids(sizes.text), steps, seed=int(random.integers(2**31)))

    need = window_usage(sample(), visual_tokens)
    size = RowSize(sizes.samples * need.frames, sizes.image_size, -(-sizes.samples * need.slots // 8) * 8,
                   sizes.samples * need.targets)
    return stack([lay_out([sample() for _ in range(sizes.samples)], size, visual_tokens, patches)
                  for _ in range(sizes.batch)])


class Case:
    """A compiled step and the state it takes turns on."""

    def __init__(self, sizes: Sizes):
        """Compile, and take the steps that do not count."""
        config = run_config(sizes)
        mesh = make_mesh(config.mesh)
        optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
        shapes, random = abstract_state(config, mesh, optimizer), np.random.default_rng(0)

        def fill(leaf: Any, draw: bool) -> jax.Array:
            values = 0.02 * random.standard_normal(leaf.shape) if draw else np.zeros(leaf.shape)
            return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

        self._state = dataclasses.replace(jax.tree.map(lambda leaf: fill(leaf, False), shapes),
                                          params=jax.tree.map(lambda leaf: fill(leaf, True), shapes.params))
        self._batch = shard_batch(rows(sizes, config), mesh)
        traced = make_train_step(config, mesh, optimizer).trace(self._state, self._batch)
        self.flops = total_flops(operations(traced.jaxpr))
        begun = time.perf_counter()
        self._step = traced.lower().compile()
        self.compile_seconds = time.perf_counter() - begun
        memory = self._step.memory_analysis()
        self.temporary_bytes = None if memory is None else memory.temp_size_in_bytes
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
        self.slots = self._batch.token_BS.shape[1]
        self.seconds: list[float] = []
        self.processor_seconds: list[float] = []
        for _ in range(WARM_STEPS):
            self.take_step()
        self.seconds, self.processor_seconds = [], []

    def take_step(self) -> None:
        """One step, timed."""
        begun, spent = time.perf_counter(), time.process_time()
        self._state, metrics = self._step(self._state, self._batch)
        loss = float(metrics.loss)
        self.seconds.append(time.perf_counter() - begun)
        self.processor_seconds.append(time.process_time() - spent)
        if not np.isfinite(loss):
            raise FloatingPointError(f"found a loss of {loss}, expected a number: the case measures nothing")

    def figures(self) -> dict[str, Any]:
        """Of the JSON."""
        seconds = min(self.seconds)
        return {"seconds": seconds, "processor_seconds": min(self.processor_seconds),
                "flops": self.flops, "flops_per_second": self.flops / seconds,
                "parameters": self.parameters, "slots": self.slots, "temporary_bytes": self.temporary_bytes,
                "compile_seconds": self.compile_seconds, "all_seconds": self.seconds}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """a of the least-squares fit log value = a log size + b."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def fitted(sizes: Sequence[int], points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Exponents of a curve: over all points, and over the two largest."""
    kinds = {"time": "seconds", "processor_time": "processor_seconds", "flops": "flops"}
    over: dict[str, Any] = {}
    for name, first in (("all", 0), ("two_largest", -2)):
        found = {kind: exponent(sizes[first:], [point[field] for point in points[first:]])
                 for kind, field in kinds.items()}
        # Least squares are linear: the exponent of a ratio is the difference of exponents.
        over[name] = {**found, "time_per_flop": found["time"] - found["flops"],
                      "processor_time_per_flop": found["processor_time"] - found["flops"]}
    steep = {name: over["two_largest"][kind] > STEEP
             for name, kind in (("steep", "time_per_flop"), ("steep_by_processor", "processor_time_per_flop"))}
    return {**over, **steep}


def measure(name: str, size: str, rounds: int) -> dict[str, Any]:
    """One curve, printed as it is found."""
    values, change = CURVES[name]
    cases = {value: Case(change(BASES[size], value)) for value in values[size]}
    for _ in range(rounds):
        for case in cases.values():
            case.take_step()
    points = [{name: value, **case.figures()} for value, case in cases.items()]
    curve = {"points": points, "exponents": fitted(list(cases), points)}
    print(f"\n{table(name, curve)}", flush=True)
    return curve


def table(name: str, curve: dict[str, Any]) -> str:
    """A curve as a Markdown table and a line of its exponents."""
    lines = [f"| {name} | slots a row | parameters | GFLOP | s a step (CPU) | GFLOP/s | temporary MiB | compile s |",
             "|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for point in curve["points"]:
        memory = "?" if point["temporary_bytes"] is None else f"{point['temporary_bytes'] / 2**20:,.0f}"
        lines.append(f"| {point[name]} | {point['slots']} | {point['parameters'] / 1e6:.1f}M "
                     f"| {point['flops'] / 1e9:.1f} | {point['seconds']:.4f} ({point['processor_seconds']:.4f}) "
                     f"| {point['flops_per_second'] / 1e9:.0f} | {memory} | {point['compile_seconds']:.1f} |")
    every, last = curve["exponents"]["all"], curve["exponents"]["two_largest"]
    verdict = ""
    if curve["exponents"]["steep"]:
        verdict = ("; cost grows FASTER than the work" if curve["exponents"]["steep_by_processor"] else
                   "; time grows faster than the work, processor time does not: other programs, or cores left idle")
    return "\n".join([
        *lines, "",
        f"{name}: time ~ {name}^{every['time']:.2f} (CPU {every['processor_time']:.2f}), FLOPs ~ "
        f"{name}^{every['flops']:.2f}, time / FLOPs ~ {name}^{every['time_per_flop']:.2f}; over the two largest "
        f"{last['time']:.2f} ({last['processor_time']:.2f}), {last['flops']:.2f}, {last['time_per_flop']:.2f}{verdict}",
    ])


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), default="small", help="full: about 10 GiB, and an hour")
    parser.add_argument("--curves", nargs="+", choices=tuple(CURVES), default=list(CURVES), metavar="NAME",
                        help=f"of {', '.join(CURVES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model and three points a curve: does it run?")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: found {options.rounds}, expected at least 1")
    machine, size = describe(), "quick" if options.quick else options.size
    tune_heap()
    curves = {name: measure(name, size, options.rounds) for name in dict.fromkeys(options.curves)}
    if options.json:
        write_json(options.json, machine, {"size": size, "base": dataclasses.asdict(BASES[size]), "curves": curves})


if __name__ == "__main__":
    main()
