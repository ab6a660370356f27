"""What a server adds to acting: the time of an action from a robot's side, against the same policy in this process.

    python benchmarks/serve_latency.py --checkpoint WORKDIR [--domain D] [--clients 1,4,16] [--steps 100]
        [--rate_hz HZ] [--ahead] [--served_only] [--json PATH]

A server of its own (`python -m agent_jax.serve`) on this machine, and 1, 4 and 16 robots that see noise and ask as fast
as they are answered; then, with the server gone, `Policy.act` on as many observations in one call. What the robots do
costs time on the same cores. benchmarks/results/ has what was measured.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from machine import describe, write_json

from agent_jax.client import Client
from agent_jax.client.demo import RandomObservations, format_table, measure
from agent_jax.json_files import json_path
from agent_jax.policy import Policy
from agent_jax.runtime.host_memory import tune_heap

WARM_UP = 6  # calls that are not counted, more than any window's steps that are read differently
INSTRUCTION = "go"


def serve(options: argparse.Namespace, clients: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
    """Figures by number of robots, the server's metadata, and the seconds until it was ready."""
    line = [sys.executable, "-m", "agent_jax.serve", "--checkpoint", options.checkpoint, "--domain", options.domain,
            "--port", "0", "--max_batch", str(max(clients)), "--log_level", "error",
            *(["--ahead"] if options.ahead else [])]
    begun = time.perf_counter()
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = next((text for text in server.stdout if text.startswith("ready")), "")
            found = re.search(r"ws://[^,]+", said)
            if found is None:
                raise RuntimeError("the server ended before it was ready")
            ready_s = time.perf_counter() - begun
            print(f"the server was ready after {ready_s:.1f} s", flush=True)
            rows = []
            for number in clients:
                measured = measure(found[0], options.steps, number, rate_hz=options.rate_hz, instruction=INSTRUCTION,
                                   warm_up=WARM_UP)
                print(format_table([measured]), flush=True)
                rows.append(measured.to_json())
            with Client(found[0]) as client:
                return rows, client.metadata, ready_s
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def in_process(options: argparse.Namespace, clients: Sequence[int], metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """The same policy, asked for as many actions in one call as there were robots."""
    tune_heap()  # as the server does
    policy = Policy.load(options.checkpoint, domain=options.domain, ahead=options.ahead)
    policy.warm_up((max(clients),))
    seen, rows = RandomObservations(metadata, 0), []
    for number in clients:
        ids = list(range(number))
        policy.reset(ids)
        milliseconds = []
        for _ in range(WARM_UP + options.steps):
            images, states = [seen.images() for _ in ids], [seen.state() for _ in ids]
            begun = time.perf_counter()
            policy.act(images, [INSTRUCTION] * number, ids, [state for state in states if state is not None] or None)
            milliseconds.append(1e3 * (time.perf_counter() - begun))
        p50, p90, p99 = np.percentile(milliseconds[WARM_UP:], (50, 90, 99))
        print(f"in process, {number:>2} in one call: p50 {p50:.2f} ms, p90 {p90:.2f} ms, p99 {p99:.2f} ms", flush=True)
        rows.append({"batch": number, "p50": round(p50, 3), "p90": round(p90, 3), "p99": round(p99, 3)})
    return rows


def main() -> int:
    """Run both; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--domain", default="")
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--steps", type=int, default=100, help="actions of each robot that are counted")
    parser.add_argument("--rate_hz", type=float, default=0.0, help="of each robot; 0: as fast as it is answered")
    parser.add_argument("--ahead", action="store_true", help="read what is known of the next row after an action")
    parser.add_argument("--served_only", action="store_true", help="leave out the same policy in this process")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    machine = describe(accelerators=False)
    clients = [int(number) for number in options.clients.split(",")]
    with tempfile.TemporaryDirectory() as compiled:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)  # so that nothing is compiled twice
        served, metadata, ready_s = serve(options, clients)
        alone = [] if options.served_only else in_process(options, clients, metadata)
    if options.json:
        write_json(options.json, machine, {
            "checkpoint": options.checkpoint, "domain": metadata["domain"], "window": metadata["window"],
            "steps": options.steps, "ahead": options.ahead, "rate_hz": options.rate_hz, "ready_s": round(ready_s, 1),
            "served": served, "in_process": alone})
    return 0


if __name__ == "__main__":
    sys.exit(main())
