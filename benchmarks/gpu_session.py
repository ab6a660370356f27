"""Measures this code on one GPU in at most ten minutes, the most valuable part first; what is measured is never lost.

    python benchmarks/gpu_session.py [--out DIR] [--cache DIR] [--minutes 9.5] [--only PART ...] [--again] [--data DIR]
        [--tiny]

    losses         does the train step run, and are its losses those of the CPU (1e-3, bf16)?
    step           the train step at full size, `visible`, bf16: ours unrolled and scanned, PyTorch's compiled and eager
                   with flash attention; the same work, in turns: time, MFU, memory, compile time
    products       all matrix products of that step, each alone
    step_all       the same as `step` in mode `all`
    products_all   and its products
    profile        where the time of our step goes, by kind of operation
    act            seconds to an action at batch 1 and 16, ours and the exported agent's in PyTorch
    input          frames a second of the input pipeline on this host; --data: a Language-Table set, else synthetic

    OUT/session.md      the figures beside their goals, and of each part its command and output
    OUT/session.json    the same: {"runs": {PART: {"status", "command", "machine", "figures", ...}}}
    OUT/parts/*.json    what the parts write as they go

Each part is a process of its own with a time limit, and both files are written after each. A part that is cut off, by
its limit, by --minutes or by a signal, keeps what it had measured. A second call with the same OUT skips the parts that
are done and runs the others; what was compiled is read from --cache (default: OUT/cache). --tiny runs everything at
tiny sizes, on a CPU as well, and parts have no limits of their own; without a C++ compiler PyTorch then compiles
nothing. docs/large_runs/gpu.md: what to bring to a machine without a network.

Exit status: 0; 1 if a part failed or is not done.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks_page import numbers
from run_all import FAILED, LEFT_OUT, OK, ROOT, Benchmark, Runner, language_table, read_runs, write

from agent_jax.runtime.processor import processor_fingerprint

CUT_OFF = "cut off"
LEAST_S = 20  # a part that would have less is not begun
LAST_S = 5  # of the session's time, to end a part and write
TURNS = "--no-products --together --only"
CASES = f"{TURNS} unrolled-bf16 transformers-bf16-compiled ours-bf16 transformers-bf16"
TINY = "--size tiny --frames 2 --batch 2 --text 8 --actions 4"
FEW = "--least-share 0.03"
TORCH = ("torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Part(Benchmark):
    """A benchmark of the session; `limit_s` is the longest that it may take."""

    limit_s: int = 60


PARTS = (
    Part("losses", "--batch 2", TINY, script="step_losses", limit_s=120),
    Part("step", f"--modes visible --batch 64 --steps 3 --per-turn 10 {CASES}",
         f"{TINY} --modes visible --steps 1 {TURNS} unrolled-bf16 transformers-bf16-compiled", TORCH, "train_step",
         270),
    Part("products", "--mode visible --batch 64", f"{TINY} {FEW} --mode visible", script="step_products", limit_s=90),
    # Half the rows: every image has four times as many tokens in the language model.
    Part("step_all", f"--modes all --batch 32 --steps 3 --per-turn 10 {CASES}",
         f"{TINY} --modes all --steps 1 {TURNS} ours-bf16 transformers-bf16", TORCH, "train_step", 270),
    Part("products_all", "--mode all --batch 32", f"{TINY} {FEW} --mode all", script="step_products", limit_s=90),
    Part("profile", "--precision bf16 --mode visible --batch 64 --unroll 12 --steps 5",
         f"{TINY} --precision bf16 --steps 1", script="step_profile", limit_s=150),
    Part("act", "--no-parity --random full --dtype bfloat16 --batch 1 16 --steps 10 "
         "--only sliding ahead flushed pytorch",
         "--no-parity --random tiny --dtype bfloat16 --batch 1 --frames 1 --steps 1 --only sliding pytorch", TORCH,
         "act_latency", 150),
    Part("input", "--seconds 3 --rounds 2 --copies 0 --processes 8",
         "--episodes 2 --seconds 0.2 --rounds 1 --copies 0 --processes 1", script="input_pipeline", limit_s=120),
)
GOALS = {"loss": 1e-3, "mfu": 0.5, "times": 1.5, "products": 0.7}
HEAD = """# A session on a GPU

Written by `python benchmarks/gpu_session.py`; do not edit. The figures are also in [session.json](session.json).
"""


def gpus() -> list[str]:
    """The names of this machine's NVIDIA GPUs; JAX is not asked, since it would hold one."""
    line = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(line, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"gpu {name}" for name in found.splitlines()]


def set_environment(cache: Path, *, has_gpu: bool) -> None:
    """Have the parts use this machine's device, share its memory, and keep what XLA, Inductor and Triton compile."""
    os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if has_gpu else "cpu")
    if not has_gpu and not shutil.which(os.environ.get("CXX", "g++")):
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    compiled = cache.absolute() / processor_fingerprint()  # CPU programs run on the same kind of processor only
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(compiled / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"), "TRITON_CACHE_DIR": str(compiled / "triton"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def cut_off(runner: Runner, part: Part, entry: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The entry of a part that was ended early, with the figures that it had written."""
    try:
        found = runner.figures(part)
    except (OSError, ValueError):
        found = {}
    return {**entry, **found, "status": CUT_OFF, "reason": reason}


def better(entry: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """The entry to keep: the new one, unless it was ended before it had measured as much as the one before."""
    if entry["status"] == OK or before is None:
        return entry
    fewer = len(numbers(entry.get("figures", {}))) < len(numbers(before.get("figures", {})))
    return before if before["status"] == OK or fewer else entry


# ----------------------------------------------------------------------------------------------------------------------
# The figures beside their goals


def figures(runs: Mapping[str, Mapping[str, Any]], part: str) -> Mapping[str, Any]:
    """What a part measured; {} if nothing."""
    return runs.get(part, {}).get("figures", {})


def step_rows(runs: Mapping[str, Mapping[str, Any]], suffix: str) -> list[tuple[str, str, str, bool | None]]:
    """(figure, value, goal, whether it is met) of the train step in one mode; `suffix` of its parts: "" or "_all"."""
    cases = {f"{case['model']}{'-compiled' if case['framework'] == 'torch' and case['compiled'] else ''}": case
             for case in figures(runs, f"step{suffix}").get("cases", [])}
    names = {"unrolled": "ours, unrolled", "ours": "ours, scanned", "transformers-compiled": "PyTorch, compiled",
             "transformers": "PyTorch, eager"}
    mode = "all" if suffix else "visible"
    rows: list[tuple[str, str, str, bool | None]] = []
    for name, title in names.items():
        if case := cases.get(name):
            memory = case.get("peak_device_bytes")
            rows.append((f"{mode}: {title}", f"{1e3 * case['seconds_per_step']:.1f} ms a step, "
                         f"{case['flops_per_second'] / 1e12:,.3g} TFLOP/s, "
                         + (f"{memory / 2**30:.1f} GiB, " if memory else "")
                         + f"compiled in {case['compile_seconds']:.0f} s", "", None))
    mine = [cases[name] for name in ("unrolled", "ours") if name in cases]
    if not mine:
        return rows
    best = min(mine, key=lambda case: case["seconds_per_step"])
    if best["mfu"] is not None:
        rows.append((f"{mode}: MFU", f"{best['mfu']:.0%}", f"{GOALS['mfu']:.0%}", best["mfu"] >= GOALS["mfu"]))
    if theirs := cases.get("transformers-compiled"):
        times = theirs["seconds_per_step"] / best["seconds_per_step"]
        rows.append((f"{mode}: times as fast as compiled PyTorch", f"{times:.2f}", f"{GOALS['times']}",
                     times >= GOALS["times"]))
        if {"peak_device_bytes"} <= best.keys() & theirs.keys():
            share = best["peak_device_bytes"] / theirs["peak_device_bytes"]
            rows.append((f"{mode}: GPU memory / compiled PyTorch's", f"{share:.2f}", "at most 1", share <= 1))
    if "seconds" in (products := figures(runs, f"products{suffix}")):
        share = products["seconds"] / best["seconds_per_step"]
        rows.append((f"{mode}: its products alone / the step", f"{share:.0%}", f"{GOALS['products']:.0%}",
                     share >= GOALS["products"]))
    return rows


def summary(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of figures and goals, and what is not done yet."""
    rows = []
    if "largest_difference" in (losses := figures(runs, "losses")):
        worst = losses["largest_difference"]
        rows.append(("losses of the first steps, from the CPU's", f"{worst:.1e}", f"{GOALS['loss']:.0e}",
                     worst <= GOALS["loss"]))
    rows += step_rows(runs, "") + step_rows(runs, "_all")
    for batch, ways in figures(runs, "act").get("seconds", {}).items():
        rows.append((f"an action, batch {batch}", ", ".join(f"{way} {1e3 * found['action']:.1f} ms"
                                                            for way, found in ways.items()), "", None))
    for way, found in figures(runs, "input").get("rates", {}).items():
        if "frames_per_s" in found:
            rows.append((f"input: {way}", f"{found['frames_per_s']:,.0f} frames/s", "", None))
    verdict = {True: "met", False: "**missed**", None: ""}
    lines = ["| figure | found | goal | |", "|---|---|---|---|",
             *(f"| {name} | {value} | {goal} | {verdict[met]} |" for name, value, goal, met in rows)]
    if missing := [part.name for part in PARTS if runs.get(part.name, {}).get("status") != OK]:
        lines += ["", f"Not done: {', '.join(missing)}."]
    if any(run.get("mode") == "quick" for run in runs.values()):
        lines += ["", "Tiny sizes: it ran, and these are no measurements."]
    return "\n".join(lines) + "\n"


def differences(runs: Mapping[str, Mapping[str, Any]], here: Mapping[str, Any]) -> list[str]:
    """Accelerators and versions of earlier runs that differ from this machine's: "jax 0.10.2, not 0.11.2"."""
    found = {}
    for run in runs.values():
        there = run["machine"]
        if (cards := there.get("accelerators")) != here["accelerators"]:
            found[f"{', '.join(cards or []) or 'no GPU'}, not {', '.join(here['accelerators']) or 'none'}"] = None
        for name, version in there["versions"].items():
            if version != (now := here["versions"].get(name)):
                found[f"{name} {version}, not {now}"] = None
    return [*found]


# ----------------------------------------------------------------------------------------------------------------------
# The session


def stop(number: int, frame: Any) -> None:
    """A signal ends the session by way of its `except` clauses, which write."""
    del frame
    sys.exit(128 + number)


def session(runner: Runner, parts: Sequence[Part], runs: dict[str, Any], out: Path, deadline: float, *,
            is_tiny: bool) -> None:
    """Run parts until the time is up; `runs` and both files are kept up to date. Tiny ones have no limit each."""

    def keep(part: Part, entry: dict[str, Any]) -> None:
        runs[part.name] = better(entry, runs.get(part.name))
        ordered = {part.name: runs[part.name] for part in PARTS if part.name in runs}
        write(out, ordered, None, name="session", head=f"{HEAD}\n{summary(ordered)}")

    for part in PARTS:  # what a call that was killed left
        before = runs.get(part.name, {})
        if before.get("status") != OK and runner.output(part).is_file():
            left_over = cut_off(runner, part, runner.entry(), "the session was killed")
            if len(numbers(left_over.get("figures", {}))) > len(numbers(before.get("figures", {}))):
                keep(part, left_over)
    for part in parts:
        left = deadline - time.monotonic() - LAST_S
        if left < min(LEAST_S, part.limit_s):
            print(f"{part.name}: not begun, {left:.0f} s are left; call again", flush=True)
            continue
        print(f"{part.name}:", flush=True)
        try:
            entry = runner.run(part, left if is_tiny else min(left, part.limit_s))
        except BaseException:
            keep(part, cut_off(runner, part, runner.entry(), "the session was ended by a signal"))
            raise
        if entry["status"] == FAILED:
            ended = cut_off(runner, part, entry, entry["reason"])
            entry = ended if entry.get("late") else {**ended, "status": FAILED}
        keep(part, entry)
        reason = f": {entry['reason'].splitlines()[0]}" if entry.get("reason") else ""
        print(f"{part.name}: {entry['status']}{reason}, {entry.get('seconds', 0):.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    begun = time.monotonic()
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: runs/gpu_session, with --tiny runs/gpu_session_tiny")
    parser.add_argument("--cache", type=Path, help="directory of compiled programs; default: OUT/cache")
    parser.add_argument("--minutes", type=float, help="after which nothing runs; default: 9.5, with --tiny 60")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART",
                        help=f"of {', '.join(names)}")
    parser.add_argument("--again", action="store_true", help="also the parts that are done")
    parser.add_argument("--data", type=Path, default=language_table(), help="directory of a Language-Table set")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does everything run?")
    options = parser.parse_args(arguments)
    found_gpus = gpus()
    if not options.tiny and not found_gpus:
        parser.error("nvidia-smi finds no GPU, expected one; pass --tiny to try everything on a CPU")
    minutes = (60 if options.tiny else 9.5) if options.minutes is None else options.minutes
    if not minutes > 0:
        parser.error(f"--minutes: found {minutes:g}, expected more than 0")
    if options.data and not (options.data / "dataset_info.json").is_file():
        parser.error(f"--data: found no dataset_info.json in {options.data}, expected the directory of a "
                     "Language-Table set; without --data a synthetic set is made")
    out = options.out or ROOT / "runs" / ("gpu_session_tiny" if options.tiny else "gpu_session")
    file = out / "session.json"
    try:
        runs = read_runs(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if any((run["mode"] == "quick") != options.tiny for run in runs.values()):
        found, given = ("with", "without") if not options.tiny else ("without", "with")
        parser.error(f"--out: {file} holds a session {found} --tiny, this one is {given}; pass another folder")
    scratch = out / "parts"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: cannot make a folder for results: {error}")
    runner = Runner(quick=options.tiny, data=options.data, scratch=scratch, accelerators=found_gpus)
    if differ := differences(runs, runner.entry()["machine"]):
        parser.error(f"--out: {file} holds figures of another machine or other versions: {'; '.join(differ)}; pass "
                     "another folder")
    set_environment(options.cache or out / "cache", has_gpu=bool(found_gpus))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    wanted = [part for part in PARTS if part.name in options.only
              and (options.again or runs.get(part.name, {}).get("status") != OK)]
    if options.data:
        wanted = [dataclasses.replace(part, full=f"--data {{data}} {part.full}", quick=f"--data {{data}} {part.quick}")
                  if part.name == "input" else part for part in wanted]
    session(runner, wanted, runs, out, begun + 60 * minutes, is_tiny=options.tiny)
    print(summary(runs) + f"page: {out / 'session.md'}")
    return int(any(runs.get(name, {}).get("status") not in (OK, LEFT_OUT) for name in options.only))


if __name__ == "__main__":
    sys.exit(main())
