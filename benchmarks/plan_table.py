"""The tables of benchmarks/results/plans.md, from the JSON files that `python -m agent_jax.plan ... --json FILE` wrote.

python benchmarks/plan_table.py FILE ... [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from agent_jax.json_files import json_path, write_json

HEAD = ("plan", "chips", "mesh", "batch", "GiB a chip", "TFLOP a step", "made again", "sent MB a chip", "compute ms",
        "HBM ms", "network ms", "roofline: frames/s", "MFU", "days", "chip-hours", "at 40% MFU: days")


def row_of(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """One row, by column."""
    roof, memory, batch = record["roofline"], record["memory"], record["batch"]
    peak, assumed = roof["at_peak"], roof["assumed"]
    sent = sum(each["sent_bytes"] for each in record["collectives"])
    estimate = " (estimate)" if record["estimate"] else ""
    values = (
        f"{name}{estimate}", str(record["topology"]["devices"]), "x".join(map(str, record["mesh"].values())),
        f"{batch['rows']} = {batch['shards']} x {batch['rows_a_microbatch_and_shard']} x {batch['microbatches']}",
        f"{memory['total'] / 2**30:.1f} of {memory['hbm'] / 2**30:.1f}", f"{roof['model_flops'] / 1e12:,.0f}",
        f"{roof['recomputed_flops'] / 1e12:,.0f}", f"{sent / 1e6:,.0f}", f"{roof['compute_seconds'] * 1e3:,.0f}",
        f"{roof['hbm_seconds'] * 1e3:,.0f}", f"{roof['interconnect_seconds'] * 1e3:,.0f}",
        f"{peak['frames_per_second']:,.0f}", f"{peak['mfu']:.0%}", f"{peak['paper_days']:.1f}",
        f"{peak['paper_chip_hours']:,.0f}", f"{assumed['paper_days']:.1f}")
    return dict(zip(HEAD, values, strict=True))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a table."""
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row.values()))} |" for row in rows)])


def main() -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--json", type=json_path, help="also write the rows here")
    arguments = parser.parse_args()
    try:
        rows = [row_of(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in arguments.files]
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"expected files that `python -m agent_jax.plan --json FILE` wrote: {error!r}")
    print(markdown(rows))
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
