"""What the compiled train step of a tiny model costs, counted, not timed, against the figures in step_counts.json.

    python benchmarks/step_counts.py [--write] [--json PATH]

    matmul_flops      of matrix products, on the jaxpr: every layer, forward and backward; the same whatever the version
    bytes_accessed    read and written by all operations, as the compiler counts them: a scan's body once
    fusions           kernels that the compiler made of elementwise operations, reductions and library calls
    temporary_bytes   memory beside arguments and results

The last three depend on the compiler and are kept by minor version of jax, for XLA on a CPU. Less is as much a reason
to write new figures as more: a gain that is not written down can be lost unseen.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from agent_jax.batch import Batch, RowSize
from agent_jax.config import Config, from_config_dict, presets, to_config_dict
from agent_jax.json_files import json_path, write_json
from agent_jax.models.agent import abstract_params, training_visual_tokens
from agent_jax.plan.flops import operations, total_flops
from agent_jax.runtime import processor
from agent_jax.runtime.sharding import make_mesh
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.state import abstract_state
from agent_jax.train.step import make_train_step

FILE = Path(__file__).with_name("step_counts.json")
STEPS: dict[str, dict[str, Any]] = {
    "float32, all": {"model.dtype": "float32", "model.visual_tokens": "all"},
    "bfloat16, visible, dots": {"model.dtype": "bfloat16", "model.visual_tokens": "visible", "model.remat": "dots"},
    "bfloat16 without its instructions": {"model.dtype": "bfloat16", "model.visual_tokens": "visible"},
}
LACKING = "without its instructions"  # in a name: compiled as for a processor that has none for products of bfloat16
# Relative; the same machine code is not promised for processors with other vector instructions or numbers of cores.
TOLERANCE = {"matmul_flops": 0.0, "bytes_accessed": 0.03, "fusions": 0.05, "temporary_bytes": 0.05}


def tiny_config(changes: dict[str, Any]) -> Config:
    """Two layers of every stack, so that all scans are scans."""
    draft: presets.Draft = to_config_dict(Config()).unlock()
    presets.small_model(draft, image_size=32, patch_size=8, width=64, heads=2, vision_depth=2, language_depth=2,
                        positions=128)
    draft.model.mae.depth = 2
    draft.model.mae.activation = "gelu"
    draft.model.vision.activation = "quick_gelu"
    draft.model.language.vocabulary_size = 1_000
    draft.train.batch_size = 4
    draft.update_from_flattened_dict(changes)
    return from_config_dict(draft)


def counts(step: str) -> dict[str, int]:
    """The four counts of one of STEPS; it is compiled, not run, and for no processor but the one its name says."""
    instructions = {"sse2"} if LACKING in step else {"sse2", "avx512_bf16"}
    with mock.patch.object(processor, "instructions", return_value=frozenset(instructions)):
        return _counts(tiny_config(STEPS[step]))


def _counts(config: Config) -> dict[str, int]:
    V = training_visual_tokens(config.model)
    size = RowSize(frames=2, image_size=config.model.vision.image_size, slots=2 * V + 24, targets=23)
    batch = Batch.fake(size, config.train.batch_size, visual_tokens=V, vocabulary_size=1_000)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
    step: Any = make_train_step(config, mesh, optimizer)
    traced = step.trace(abstract_state(config, mesh, optimizer), batch)
    compiled = traced.lower().compile()
    return {
        "matmul_flops": total_flops(operations(traced.jaxpr)),
        "bytes_accessed": int(compiled.cost_analysis()["bytes accessed"]),
        "fusions": compiled.as_text().count(" fusion("),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def jax_minor() -> str:
    """Such as "0.10"."""
    return ".".join(jax.__version__.split(".")[:2])


def expected(stored: dict[str, Any], step: str) -> dict[str, int]:
    """The counts on record for this version of jax; without any, only those that no version changes."""
    of_step = stored.get(step)
    if of_step is None:
        raise ValueError(f"{FILE.name}: no figures of {step!r}; write them with --write")
    return {"matmul_flops": of_step["matmul_flops"], **of_step["compiled"].get(jax_minor(), {})}


def differences(found: dict[str, int], wanted: dict[str, int]) -> list[str]:
    """What is beyond its tolerance, a line each."""
    return [f"{name}: found {found[name]:,}, expected {value:,} ({found[name] / value - 1:+.1%}, allowed "
            f"{TOLERANCE[name]:.0%})"
            for name, value in wanted.items() if abs(found[name] - value) > TOLERANCE[name] * value]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put this version's figures into {FILE.name}")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    if jax.default_backend() != "cpu":
        parser.error(f"found the backend {jax.default_backend()!r}; the figures are of a CPU: set JAX_PLATFORMS=cpu")
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    found = {step: counts(step) for step in STEPS}
    wrong = False
    for step, of_step in found.items():
        lines = [] if options.write else differences(of_step, expected(stored, step))
        wrong = wrong or bool(lines)
        print(f"{step}: " + ", ".join(f"{name} {value:,}" for name, value in of_step.items()))
        print("".join(f"  {line}\n" for line in lines), end="")
        compiled = {**stored.get(step, {}).get("compiled", {}),
                    jax_minor(): {name: value for name, value in of_step.items() if name != "matmul_flops"}}
        stored[step] = {"matmul_flops": of_step["matmul_flops"], "compiled": dict(sorted(compiled.items()))}
    if options.write:
        FILE.write_text(json.dumps(stored, indent=1) + "\n")
    if options.json:
        write_json(options.json, {"jax": jax.__version__, "counts": found})
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
