"""One engine of edge_latency.py in a process of its own: prints start-up, latency and peak memory as one line of JSON.

    python benchmarks/edge_latency_worker.py ENGINE FOLDER DOMAIN THREADS ACTIONS BEGUN

Imports nothing but what the engine needs: `jax` is this package on a checkpoint, `torch` and `onnx` are the one file of
an exported folder. BEGUN is time.time() at the start of the process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def load(engine: str, folder: Path, domain: str, threads: int) -> Any:
    """The policy."""
    if engine == "jax":
        from agent_jax.policy import Policy
        from agent_jax.runtime.host_memory import tune_heap

        tune_heap()
        return Policy.load(folder, domain=domain)
    file = folder / f"{engine}_agent.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if engine == "onnx":
        return module.Policy(folder, domain=domain, threads=threads)
    module.torch.set_num_threads(threads)
    return module.Policy(folder, domain=domain)


def main(engine: str, folder: str, domain: str, threads: int, actions: int, begun: float) -> None:
    """Act on random images and print the figures."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    policy, random = load(engine, Path(folder), domain, threads), np.random.default_rng(0)
    found, size, seconds = policy.domain, policy.domain.image_size, []
    cameras = list(found.camera_names if engine == "jax" else found.cameras)
    states = None
    if found.state is not None:
        fields = found.state.spec.fields.items() if engine == "jax" else [
            (key, (one["shape"], one["dtype"])) for key, one in found.state.fields.items()]
        states = [{key: np.zeros(shape, dtype) for key, (shape, dtype) in fields}]
    first = 0.0
    for _ in range(found.window + actions):
        images = {name: random.integers(0, 256, (size, size, 3), np.uint8) for name in cameras}
        at = time.perf_counter()
        policy.act([images], ["go"], [0], states)
        seconds.append(time.perf_counter() - at)
        first = first or time.time() - begun
    measured = 1e3 * np.array(seconds[found.window :])  # windows are full
    # Not ru_maxrss, which a child inherits from the process that starts it.
    [peak] = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({"p50_ms": float(np.median(measured)), "p99_ms": float(np.quantile(measured, 0.99)),
                      "first_action_s": first, "peak_mb": int(peak) / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:6]), float(sys.argv[6]))
