"""Where the time of our train step goes, by XLA's own profiler: by kind of operation, by part, and the dearest.

    python benchmarks/step_profile.py [--size full|babyai|tiny] [--precision f32|bf16] [--mode visible|all] [--steps 2]
        [--frames 4] [--batch 4] [--text 32] [--actions 12] [--remat dots] [--unroll 1] [--depth 0]
        [--attention auto] [--top 15] [--json PATH]

On a GPU the times are those of its kernels. On a CPU they are those of operations that may run side by side on several
cores, so their sum is not the step's time, and some products return before other threads have made them: they are told
too short, and what they run beside too long. A loop's own time is that of the operations in it. An operation that XLA
fused of several counts as what it is named after, which is the last of them.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, write_json
from train_step_worker import Case, Sizes, add_sizes, compiled, our_program, sizes_of

from agent_jax.json_files import json_path

KINDS = (  # the first whose pattern the operation's target, kernel or traced name has
    ("attention kernel", re.compile(r"fmha|flash|dot_product_attention|sdpa|splash")),
    ("matrix product", re.compile(r"dot_general|cublas|gemm|nvjet|cutlass|xmma|onednn|ynn")),
    ("stacking", re.compile(r"dynamic_update_slice|dynamic_slice|dynamic-update-slice|dynamic-slice")),
    ("gather and scatter", re.compile(r"gather|scatter|take_along|sort")),
    ("reduction", re.compile(r"reduce|logsumexp|argmax|cumsum")),
    ("copy", re.compile(r"copy|transpose$|concatenate|memcpy|memset|broadcast|split")),
)
PARTS = ("vision", "mae", "language", "connector")
KEPT = 100  # operations in the JSON, the dearest
CONTAINERS = frozenset(("while", "call", "conditional"))
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][\w\-]*)\(")
_TRACED = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What the compiled program says of one of its instructions."""

    opcode: str
    traced: str  # the path of the code that it was made for: "jit(step)/jvp(Agent)/vision/blocks/mlp/up/dot_general"
    target: str  # of a custom call

    def kind(self, kernel: str) -> str:
        """One of KINDS, or elementwise."""
        text = " ".join((self.target, kernel, self.opcode, self.traced.rpartition("/")[2]))
        return next((name for name, pattern in KINDS if pattern.search(text)), "elementwise")

    def part(self) -> str:
        """The part of the model, or what else a step does."""
        if not self.traced:
            return "?"
        path = self.traced.split("/")
        found = next((part for part in PARTS if part in path), "")
        return found or ("loss and joining" if "Agent" in self.traced or "jvp" in self.traced else "optimizer and rest")


def instructions(text: str) -> dict[str, Instruction]:
    """The instructions of a compiled program by name, as kernels spell it too."""
    found: dict[str, Instruction] = {}
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            traced, target = _TRACED.search(line), _TARGET.search(line)
            made = Instruction(match[2], traced[1] if traced else "", target[1] if target else "")
            found[match[1]] = made
            found.setdefault(match[1].replace(".", "_").replace("-", "_"), made)
    return found


def events(folder: Path) -> dict[tuple[str, str], tuple[int, float]]:
    """How often each (instruction, kernel) ran and for how many seconds in all, of a profile in a folder."""
    from jax.profiler import ProfileData

    [file] = folder.rglob("*.xplane.pb")
    sums: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0])
    planes = list(ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                stats = {name: value for name, value in event.stats if name is not None}
                if not devices and "hlo_op" not in stats:
                    continue
                entry = sums[str(stats.get("hlo_op", "")), event.name]
                entry[0] += 1
                entry[1] += event.duration_ns / 1e9
    return {key: (int(count), seconds) for key, (count, seconds) in sums.items()}


def profile(sizes: Sizes, case: Case, steps: int) -> dict[str, Any]:
    """Seconds of a step by kind, by part and by operation, and of the step."""
    import jax

    lowered, state, batch = our_program(sizes, case)
    step = compiled(lowered, sizes)
    for _ in range(2):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            begun = time.perf_counter()
            for _ in range(steps):
                state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            seconds = (time.perf_counter() - begun) / steps
        found = events(Path(folder))
    known = instructions(step.as_text())
    unknown = Instruction("", "", "")
    rows = []
    for (name, kernel), (count, spent) in found.items():
        instruction = known.get(name) or known.get(kernel) or unknown
        if instruction.opcode not in CONTAINERS:
            rows.append({"name": name or kernel, "kernel": kernel, "traced": instruction.traced,
                         "kind": instruction.kind(kernel), "part": instruction.part(),
                         "times": count / steps, "seconds": spent / steps})
    rows.sort(key=lambda row: -row["seconds"])
    grouped = {}
    for by in ("kind", "part"):
        sums: dict[str, float] = collections.defaultdict(float)
        for row in rows:
            sums[row[by]] += row["seconds"]
        grouped[by] = dict(sorted(sums.items(), key=lambda item: -item[1]))
    return {"seconds_per_step": seconds, "by_kind": grouped["kind"], "by_part": grouped["part"],
            "operations": rows[:KEPT], "device": jax.devices()[0].device_kind, "sizes": dataclasses.asdict(sizes),
            "case": case.name, "temporary_bytes": step.memory_analysis().temp_size_in_bytes}


def main() -> None:
    """Profile, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--mode", choices=("visible", "all"), default="visible")
    parser.add_argument("--steps", type=int, default=2, help="profiled, after two that warm up")
    parser.add_argument("--top", type=int, default=15, help=f"operations to print, at most {KEPT}")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    sizes = sizes_of(parser, options)
    if options.steps < 1:
        parser.error(f"--steps: found {options.steps}, expected at least 1")
    # Of a CUDA graph only the whole is told. A CPU's program is not compiled again for an option of the GPU's compiler.
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer=".strip()
    machine = describe()
    found = profile(sizes, Case("ours", options.precision, True, options.mode), options.steps)
    whole = sum(found["by_kind"].values())
    print(f"{found['device']}, {found['case']}: {1e3 * found['seconds_per_step']:.1f} ms a step, "
          f"{1e3 * whole:.1f} ms of operations")
    for by in ("by_kind", "by_part"):
        for name, seconds in found[by].items():
            print(f"  {1e3 * seconds:9.2f} ms {seconds / whole:6.1%}  {name}")
        print()
    for row in found["operations"][:options.top]:
        print(f"  {1e3 * row['seconds']:9.2f} ms {row['times']:5.0f} x {row['name'][:48]:48} {row['traced'][-90:]}")
    if options.json:
        write_json(options.json, machine, found)


if __name__ == "__main__":
    main()
