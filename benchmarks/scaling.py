"""Weak and strong scaling as what one device computes and sends in a step, from 1 to 8 fake devices. No times.

    python benchmarks/scaling.py [--config configs/gpu.py] [--rows 8] [--devices 1,2,4,8] [--json FILE]

Weak: `rows` rows a device. Strong: `rows` times the most devices, whatever their number. Each point is the paper's
model compiled by XLA's CPU compiler for as many fake devices (`python -m agent_jax.plan` on GPU topologies: an
estimate), once with all devices on the mesh axis `data`, once with all on `fsdp`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from agent_jax.json_files import json_path, write_json

ROOT = Path(__file__).resolve().parent.parent
AXES = ("data", "fsdp")


def point(config: str, devices: int, rows: int, axis: str) -> dict[str, Any]:
    """What one device does in a step of `rows` rows."""
    mesh = {"data": 1, "fsdp": 1, "tensor": 1, axis: devices}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "plan.json"
        command = [sys.executable, "-m", "agent_jax.plan", f"--config={config}", f"--topology=h200-{devices}",
                   f"--global_batch={rows}", "--config.train.rows_per_device=0", f"--json={path}",
                   *(f"--config.mesh.{name}={size}" for name, size in mesh.items())]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not path.exists():
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        record = json.loads(path.read_text(encoding="utf-8"))
    roof = record["roofline"]
    return {"devices": devices, "rows": rows, "axis": axis if devices > 1 else "-",
            "flops": roof["device_flops"], "share": roof["device_flops"] * devices /
            (roof["model_flops"] + roof["recomputed_flops"]),
            "payload_bytes": {each["kind"]: each["bytes"] for each in record["collectives"]},
            "sent_bytes": sum(each["sent_bytes"] for each in record["collectives"])}


def main() -> None:
    """Compile every point, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/gpu.py")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--devices", default="1,2,4,8")
    parser.add_argument("--json", type=json_path)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.devices.split(",")]
    most, points = max(counts), {}
    print("| scaling | devices | axis | rows a step | TFLOP a device | work done / needed | sent MB a device |\n"
          "|---|---|---|---|---|---|---|")
    for kind in ("weak", "strong"):
        points[kind] = []
        for count in counts:
            rows = arguments.rows * (count if kind == "weak" else most)
            for axis in AXES if count > 1 else AXES[:1]:
                # Weak and strong scaling meet at the most devices.
                known = (one for one in points["weak"] if (one["devices"], one["rows"]) == (count, rows))
                one = next((one for one in known if one["axis"] == axis), None)
                one = one or point(arguments.config, count, rows, axis)
                points[kind].append(one)
                print(f"| {kind} | {count} | {one['axis']} | {rows} | {one['flops'] / 1e12:,.2f} | "
                      f"{one['share']:.3f} | {one['sent_bytes'] / 1e6:,.0f} |", flush=True)
    if arguments.json:
        write_json(arguments.json, points)


if __name__ == "__main__":
    main()
