"""Time and memory of attention, forward and backward, by every kernel that runs on this machine, in one run.

    python benchmarks/attention_kernels.py [--config FILE[:VARIANT]] [--rows 2] [--slots 852] [--images 8]
        [--dtype float32|bfloat16] [--turns 5] [--json PATH]

    xla      ours (models/attention.py)
    cpu      on a CPU, in bfloat16 (models/cpu/attention.py)
    library  jax.nn.dot_product_attention by XLA, with a mask for rows
    cudnn    on an NVIDIA GPU, in bfloat16
    splash   on a TPU

Two shapes of the model: `images`, whose tokens see each other (the encoder), and `rows` of two samples and padding,
read causally (the language model). The kernels take turns; medians of all turns, and their ratio to xla. What is the
fastest on a chip may become `auto` there. Memory is the compiler's figure for temporary arrays.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import describe, write_json

from agent_jax.config import Config, ModelConfig, from_config_dict
from agent_jax.json_files import json_path
from agent_jax.models.attention import causal_segment_mask
from agent_jax.models.attention_kernels import KERNELS
from agent_jax.runtime.compiler_options import compiler_options
from agent_jax.runtime.host_memory import tune_heap


def kernels(dtype: str) -> dict[str, Any]:
    """The patterns of every kernel that runs here, by name."""
    library = lambda q, k, v, mask=None: jax.nn.dot_product_attention(q, k, v, mask=mask)  # noqa: E731
    masked = lambda q, k, v, segment_BS: library(q, k, v, causal_segment_mask(segment_BS)[:, None])  # noqa: E731
    found = {"xla": KERNELS["xla"], "library": type(KERNELS["xla"])(library, masked)}
    platform_here = jax.default_backend()
    if platform_here == "cpu" and dtype == "bfloat16":
        found["cpu"] = KERNELS["cpu"]
    if platform_here == "gpu" and dtype == "bfloat16":
        found["cudnn"] = KERNELS["cudnn"]
    if platform_here == "tpu":
        found["splash"] = KERNELS["splash"]
    return found


def compiled(pattern: Callable[..., jax.Array], shape: tuple[int, ...], dtype: str, last: Any) -> tuple[Any, list[Any]]:
    """A pattern forward and backward, compiled as a train step is, and arguments for it."""
    rng = np.random.default_rng(0)
    given = [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for _ in range(4)]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum((pattern(q, k, v, last) * weight).astype(jnp.float32))

    options = compiler_options(jax.devices()[0], dtype)
    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), compiler_options=options)
    return run.lower(*given).compile(), given


def measure(model: ModelConfig, rows: int, slots: int, images: int, dtype: str, turns: int) -> dict[str, Any]:
    """Median milliseconds and MiB of temporary arrays, by shape and kernel."""
    segment_BS = np.ones((rows, slots), np.int32)
    segment_BS[:, slots // 2 :], segment_BS[:, slots * 15 // 16 :] = 2, 0
    vision, language = model.vision, model.language
    shapes = {
        "images": ("among", (images, 1 + vision.patches, vision.heads, vision.width // vision.heads), None),
        "rows": ("causally", (rows, slots, language.heads, language.width // language.heads), jnp.asarray(segment_BS)),
    }
    report: dict[str, Any] = {}
    for name, (pattern, shape, last) in shapes.items():
        made = {kernel: compiled(getattr(patterns, pattern), shape, dtype, last)
                for kernel, patterns in kernels(dtype).items()}
        times: dict[str, list[float]] = {kernel: [] for kernel in made}
        for turn in range(turns + 1):
            for kernel, (run, given) in made.items():
                begun = time.perf_counter()
                jax.block_until_ready(run(*given))
                if turn:  # the first one warms up
                    times[kernel].append(time.perf_counter() - begun)
        report[name] = {"shape": shape, **{kernel: {
            "ms": 1e3 * statistics.median(times[kernel]),
            "ratio": statistics.median(times[kernel]) / statistics.median(times["xla"]),
            "temporary_mib": run.memory_analysis().temp_size_in_bytes / 2**20,
        } for kernel, (run, _) in made.items()}}
    return report


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="", help="whose model; by default the paper's")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--slots", type=int, default=852, help="of a row: 4 frames of Language-Table and its text")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    tune_heap()
    config = Config()
    if options.config:
        file, _, variant = options.config.partition(":")
        config = from_config_dict(runpy.run_path(file)["get_config"](variant))
    dtype = options.dtype or config.model.dtype
    machine = describe()
    report = measure(config.model, options.rows, options.slots, options.images, dtype, options.turns)
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), {dtype}, forward and backward, one device")
    for name, found in report.items():
        print(f"{name} {'x'.join(map(str, found['shape']))}  (rows, slots, heads, width of a head)")
        for kernel, figures in found.items():
            if kernel != "shape":
                print(f"  {kernel:<8}{figures['ms']:>10.2f} ms  {figures['ratio']:>6.2f} of xla"
                      f"{figures['temporary_mib']:>10.1f} MiB")
    if options.json:
        write_json(options.json, machine, {"kernels": report, "dtype": dtype, "device": device.device_kind,
                                                 "turns": options.turns})


if __name__ == "__main__":
    main()
