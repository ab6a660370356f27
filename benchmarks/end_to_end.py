"""A training job from its command to its end: where the wall time goes, and how soon the first step is done.

    python benchmarks/end_to_end.py [--config configs/babyai.py] [--workdir DIR] [--starts 2] [--quick] [--json PATH]

First the whole job, in a fresh workdir and with nothing gathered yet: its own report says what went into import,
demonstrations, start, compile, data wait, step, saving and evaluation. Then the command is started again, `--starts`
times with nothing compiled and as often with the programs that the first one kept, and stopped once it has told its
first step: seconds from the command to that line, as the caller sees them, and of the processor until it has stopped,
which hardly depend on what else the machine does. The demonstrations are there by then. The two ways take turns, and
the faster start of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe, write_json

from agent_jax.json_files import json_path

ROOT = Path(__file__).resolve().parent.parent


def command(config: str, workdir: Path, data: Path, *flags: str) -> list[str]:
    """The training command."""
    return [sys.executable, "-m", "agent_jax.train", "--config", config, "--workdir", str(workdir),
            f"--config.data.directory={data}", *flags]


def environment() -> dict[str, str]:
    """Without a compilation cache of the caller's: the run's own is what is measured."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def whole_job(config: str, workdir: Path, data: Path) -> dict[str, Any]:
    """The report of a job run from beginning to end.

    What it says goes to job.log beside its workdir.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    workdir.parent.mkdir(parents=True, exist_ok=True)
    log = workdir.with_name("job.log")
    print(f"the whole job, which says in {log} how far it is", flush=True)
    begun = time.perf_counter()
    with log.open("w") as said:
        done = subprocess.run(command(config, workdir, data), env=environment(), stdout=said, stderr=subprocess.STDOUT,
                              check=False)
    if done.returncode:
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
        raise RuntimeError(f"the job ended with {done.returncode}:\n{last}")
    wall = time.perf_counter() - begun
    report = json.loads((workdir / "report.json").read_text(encoding="utf-8"))
    names = ("seconds", "seconds_to_first_step", "data_wait_share", "peak_rss_bytes", "steps", "parameters")
    return {"wall_seconds": wall, **{name: report[name] for name in names}}


def first_step(config: str, workdir: Path, data: Path, cache: Path) -> dict[str, float]:
    """Seconds from the command to the line of its first step, and of the processor until it has stopped after it.

    Raises:
        RuntimeError: it ended before.
    """
    line = command(config, workdir, data, f"--config.train.compile_cache={cache}")
    begun, spent, seconds = time.perf_counter(), _of_children(), 0.0
    with subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for text in running.stdout:
            if text.startswith("train "):
                seconds = time.perf_counter() - begun
                running.send_signal(signal.SIGTERM)
                break
        running.stdout.read()
    if seconds:
        return {"seconds": seconds, "processor_seconds": _of_children() - spent}
    raise RuntimeError(f"{' '.join(line)}: ended with {running.returncode} before its first step")


def _of_children() -> float:
    """Processor seconds of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(config: str, workdir: Path, starts: int) -> dict[str, Any]:
    """The job, and its starts with nothing compiled and with what it kept."""
    data = workdir / "demonstrations"
    job = whole_job(config, workdir / "job", data)
    found: dict[str, list[dict[str, float]]] = {"nothing compiled": [], "compiled before": []}
    for turn in range(starts):
        for way, cache in (("nothing compiled", workdir / f"cache-{turn}"),
                           ("compiled before", workdir / "job" / "compiled")):
            now = first_step(config, workdir / f"{way.split()[0]}-{turn}", data, cache.absolute())
            found[way].append(now)
            print(f"{way}: the first step was told after {now['seconds']:.1f} s (processor: "
                  f"{now['processor_seconds']:.1f} s)", flush=True)
    return {"config": config, "job": job, "starts": found}


def tables(figures: dict[str, Any]) -> str:
    """Markdown: the split of the job's time, and its starts."""
    job = figures["job"]
    whole = sum(job["seconds"].values())
    lines = ["| phase | seconds | share |", "|---|---:|---:|"]
    lines += [f"| {name} | {seconds:.1f} | {seconds / whole:.1%} |" for name, seconds in job["seconds"].items()]
    lines += [f"| **all** | **{whole:.1f}** | |", "",
              f"Data wait: {job['data_wait_share']:.2%} of waiting and stepping. First step after "
              f"{job['seconds_to_first_step']:.1f} s, demonstrations not counted. "
              f"At most {job['peak_rss_bytes'] / 2**30:.2f} GiB.", ""]
    lines += ["| start | to the first step, s | processor, s |", "|---|---:|---:|"]
    for way, starts in figures["starts"].items():
        best = {name: min(start[name] for start in starts) for name in starts[0]} if starts else {}
        lines += [f"| {way} | {best['seconds']:.1f} | {best['processor_seconds']:.1f} |"] if best else []
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "babyai.py"))
    parser.add_argument("--workdir", type=Path, help="of the job and its starts, kept; by default a temporary one")
    parser.add_argument("--starts", type=int, default=2, help="of each kind; 0: the job alone")
    parser.add_argument("--quick", action="store_true", help="the variant :smoke of the config, started once each way")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args(arguments)
    if options.starts < 0:
        parser.error(f"--starts: found {options.starts}, expected at least 0")
    if options.workdir and options.workdir.exists() and any(options.workdir.iterdir()):
        parser.error(f"--workdir: found files in {options.workdir}, expected an empty directory or none: the job is to "
                     "start from nothing")
    machine = describe(accelerators=False)
    config, starts = (options.config + ":smoke", 1) if options.quick else (options.config, options.starts)
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(config, (options.workdir or Path(temporary)).absolute(), starts)
    print(tables(figures))
    if options.json:
        write_json(options.json, machine, figures)


if __name__ == "__main__":
    main()
