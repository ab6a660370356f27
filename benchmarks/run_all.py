"""Every benchmark, one after another, each in a process of its own; what they say goes into one page and one JSON file.

    python benchmarks/run_all.py [--quick] [--only NAME ...] [--out DIR] [--data DIR] [--beside FILE.json]

    OUT/benchmarks.md      machine, versions, date, and of each benchmark its command, tables, plots
    OUT/benchmarks.json    the same figures: {"runs": {NAME: {"status", "command", "machine", "figures", ...}}}
    OUT/*.svg              plots, where the extra "benchmarks" (matplotlib) is installed

OUT is benchmarks/results/MACHINE by default, MACHINE the family of the processor (epyc, xeon, ...).

Both files are written anew after each benchmark; those that are not run now keep what OUT/benchmarks.json has of them.
One that fails, or whose packages or inputs are absent, is said to, with what it had printed, and the others go on.
`--quick` takes tiny sizes, minutes in all: it shows that everything runs, its figures mean little, so it writes to
runs/benchmarks unless --out says otherwise. `--beside` sets the figures of another machine's benchmarks.json beside
these.

Exit status: 0; 1 if a benchmark failed (one that was left out has not).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks_page import HEAD, page, write_plots
from machine import describe, end_with_parent, family

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIMIT_S = {"quick": 1200, "full": 7200}  # of one benchmark; one that hangs must not keep the others from running
OK, FAILED, LEFT_OUT = "ok", "failed", "left out"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A script, and how it is called. {workdir}: a trained BabyAI agent; {folder}: it, exported; {data}: --data."""

    name: str
    full: str
    quick: str
    packages: tuple[str, ...] = ()  # modules beyond the package's own dependencies
    script: str = ""  # where it is not called like the benchmark


# end_to_end goes first: the two that need a trained agent take its own.
BENCHMARKS = (
    Benchmark("end_to_end", "--workdir {runs}", "--quick --workdir {runs}", ("minigrid",)),
    # Of all cases, which take over an hour on two cores, those that say most.
    Benchmark("train_step", "--modes visible --steps 2 --only ours-f32 ours-bf16 unrolled-f32 unrolled-bf16 "
              "transformers-f32 transformers-f32-compiled transformers-bf16 transformers-bf16-compiled",
              "--size tiny --steps 1 --modes visible --only ours-f32 exported-f32", ("torch", "transformers")),
    # The fastest of ours and of PyTorch's in turns, since a machine's rate drifts by more than they differ.
    Benchmark("train_step_bf16", "--modes visible --steps 4 --only unrolled-bf16 ours-bf16 transformers-bf16 "
              "transformers-bf16-compiled", "--size tiny --steps 1 --modes visible --only unrolled-bf16 ours-bf16",
              ("torch", "transformers"), "train_step"),
    Benchmark("train_step_all", "--modes all --steps 2 --batch 2 --only unrolled-bf16 ours-bf16 transformers-bf16 "
              "transformers-bf16-compiled ours-f32 transformers-f32",
              "--size tiny --steps 1 --modes all --only ours-f32", ("torch", "transformers"), "train_step"),
    Benchmark("train_step_exported", "--modes visible --steps 2 --only ours-f32 exported-f32 exported-f32-compiled "
              "exported-bf16 exported-bf16-compiled",
              "--size tiny --steps 1 --modes visible --only ours-f32 exported-bf16", ("torch", "transformers"),
              "train_step"),
    Benchmark("step_profile", "", "--size tiny --steps 1"),
    Benchmark("step_products", "", "--size tiny"),
    Benchmark("scaling_curves", "", "--quick --rounds 2 --curves window width"),
    Benchmark("attention_kernels", "--dtype bfloat16", "--rows 1 --slots 64 --images 1 --turns 1"),
    Benchmark("input_pipeline", "--data {data}", "--data {data} --seconds 1 --rounds 1 --copies 2"),
    Benchmark("act_latency", "--random full --batch 1 --steps 3", "--random tiny --batch 1 --steps 2",
              ("torch", "transformers")),
    Benchmark("act_latency_bf16", "--random full --dtype bfloat16 --batch 1 --steps 3",
              "--random tiny --dtype bfloat16 --batch 1 --steps 2", ("torch", "transformers"), "act_latency"),
    Benchmark("edge_latency", "--checkpoint {workdir} --actions 20",
              "--checkpoint {workdir} --random none --threads 1 --actions 4 --precisions f32",
              ("onnx", "onnxruntime", "onnxscript", "torch", "transformers")),
    Benchmark("serve_latency", "--checkpoint {workdir}", "--checkpoint {workdir} --clients 1,2 --steps 5",
              ("websockets", "msgpack")),
    Benchmark("exported_closed_loop", "--checkpoint {workdir} --folder {folder}",
              "--checkpoint {workdir} --folder {folder} --level GoToObj --episodes 8",
              ("torch", "transformers", "minigrid")),
)


class ProcessError(RuntimeError):
    """A command failed, or was ended since it was `late`; `said` is what it printed until then."""

    def __init__(self, message: str, said: str, *, late: bool):
        super().__init__(message)
        self.said, self.late = said, late


class Runner:
    """Runs benchmarks, and makes what several of them need once."""

    def __init__(self, *, quick: bool, data: Path | None, scratch: Path, accelerators: list[str] | None = None):
        """Nothing runs yet.

        Args:
            quick: take the tiny sizes.
            data: directory of a Language-Table set, or None.
            scratch: for what is made on the way.
            accelerators: of this machine; None: JAX is asked, which takes seconds.
        """
        self._mode = "quick" if quick else "full"
        self._data, self._scratch = data, scratch
        if accelerators is None:
            # Asked for in another process: this one must not hold the memory of an accelerator.
            line = [sys.executable, str(ROOT / "benchmarks" / "machine.py")]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            accelerators = json.loads(done.stdout)["accelerators"]
        self._accelerators = accelerators

    def entry(self) -> dict[str, Any]:
        """What the entry of a benchmark begins with."""
        return {"machine": {**describe(accelerators=False), "accelerators": self._accelerators}, "mode": self._mode}

    def output(self, benchmark: Benchmark) -> Path:
        """The file that a benchmark writes its figures to."""
        return self._scratch / f"{benchmark.name}.json"

    def figures(self, benchmark: Benchmark) -> dict[str, Any]:
        """The figures that it wrote, with the machine if it describes one.

        Raises:
            OSError, ValueError: it wrote none.
        """
        figures = json.loads(self._named(self.output(benchmark).read_text(encoding="utf-8")))
        told = figures.pop("machine", None)  # of machine.py, or some text of a benchmark that has its own
        machine = {"machine": {**told, "accelerators": self._accelerators}} if isinstance(told, dict) else {}
        return {"figures": figures, **machine}

    def run(self, benchmark: Benchmark, limit_s: float = 0) -> dict[str, Any]:
        """Run one, for at most LIMIT_S or `limit_s`; returns its entry of the JSON, whatever happened."""
        begun = time.perf_counter()
        entry = self.entry()
        script, output = HERE / f"{benchmark.script or benchmark.name}.py", self.output(benchmark)
        output.unlink(missing_ok=True)
        arguments = benchmark.quick if self._mode == "quick" else benchmark.full
        try:
            if reason := self._absent(benchmark, script, arguments):
                return {**entry, "status": LEFT_OUT, "reason": reason}
            given = shlex.split(self._filled(arguments))
            named = arguments.format(runs="RUNS", workdir="WORKDIR", folder="FOLDER", data="DATA")
            entry["command"] = f"python benchmarks/{script.name} {named}".rstrip()
            said = self._named(self._process([sys.executable, str(script), *given, "--json", str(output)], limit_s))
            entry |= self.figures(benchmark)
        except (ProcessError, OSError, ValueError) as error:
            if isinstance(error, ProcessError):
                entry |= {"said": self._named(error.said), "late": error.late}
            return {**entry, "status": FAILED, "reason": str(error), "seconds": round(time.perf_counter() - begun, 1)}
        return {**entry, "status": OK, "seconds": round(time.perf_counter() - begun, 1), "said": said}

    def _absent(self, benchmark: Benchmark, script: Path, arguments: str) -> str:
        """Why a benchmark cannot run here; "" if it can."""
        if not script.is_file():
            return f"{script.name} is not in this checkout"
        missing = [package for package in benchmark.packages if importlib.util.find_spec(package) is None]
        if missing:
            return f"not installed: {', '.join(missing)}"
        if "{data}" in arguments and self._data is None:
            return "needs --data, the directory of a Language-Table set"
        if "{workdir}" in arguments and importlib.util.find_spec("minigrid") is None:
            return "needs a trained BabyAI agent, and so minigrid, which is not installed"
        return ""

    def _filled(self, arguments: str) -> str:
        """The arguments with the paths of what they name, made where it does not exist yet."""
        runs, folder = self._scratch / "end_to_end", self._scratch / "folder"
        workdir = runs / "job"
        if "{workdir}" in arguments and not (workdir / "report.json").is_file():
            line = ["--workdir", str(runs), "--starts", "0", *(["--quick"] if self._mode == "quick" else [])]
            self._process([sys.executable, str(HERE / "end_to_end.py"), *line])
        if "{folder}" in arguments and not folder.is_dir():
            self._process([sys.executable, "-m", "agent_jax.convert", "to-pytorch", str(workdir), str(folder)])
        paths = {"runs": runs, "workdir": workdir, "folder": folder, "data": self._data}
        return arguments.format(**{name: shlex.quote(str(path)) for name, path in paths.items()})

    def _named(self, text: str) -> str:
        """The text without the paths of this machine, which no reader has."""
        return text.replace(str(self._scratch), "SCRATCH").replace(f"{ROOT}/", "")

    def _process(self, line: Sequence[str], limit_s: float = 0) -> str:
        """Run a command to its end, passing on what it says; returns its stdout.

        Raises:
            ProcessError: it failed, with the end of what it complained of, or took too long.
        """
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        said: list[str] = []
        complaints: list[str] = []  # progress bars and warnings besides, which are nothing for the page

        def listen(stream: IO[str], kept: list[str]) -> None:
            for text in stream:
                print(f"    {text}", end="", flush=True)
                kept.append(text)

        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                              env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
                              preexec_fn=end_with_parent) as running:
            limit = limit_s or LIMIT_S[self._mode]
            watch = threading.Timer(limit, os.killpg, (running.pid, signal.SIGKILL))
            watch.start()
            try:
                assert running.stdout is not None
                assert running.stderr is not None
                beside = threading.Thread(target=listen, args=(running.stderr, complaints))
                beside.start()
                listen(running.stdout, said)
                beside.join()
                status = running.wait()
            except BaseException:
                os.killpg(running.pid, signal.SIGKILL)
                raise
            finally:
                late = not watch.is_alive()
                watch.cancel()
        if status:
            why = f"took longer than {limit:.0f} s" if late else f"exit status {status}"
            raise ProcessError(f"{' '.join(line[1:3])}: {why}\n{''.join(complaints[-12:]).rstrip()}", "".join(said),
                               late=late)
        return "".join(said)


def language_table() -> Path | None:
    """The real data beside the checkout, where there is some."""
    shared = Path(os.environ.get("AGENT_JAX_SHARED") or ROOT.parent / "shared")
    path = shared / "data" / "language_table_oracle_mini" / "0.0.1"
    return path if path.is_dir() else None


def write(out: Path, runs: dict[str, Any], beside: dict[str, Any] | None, *, name: str = "benchmarks",
          head: str = HEAD) -> None:
    """Both files, each in one rename."""
    out.mkdir(parents=True, exist_ok=True)
    contents = {f"{name}.json": json.dumps({"runs": runs}, indent=1) + "\n",
                f"{name}.md": page(runs, write_plots(runs, out), beside, head)}
    for file, content in contents.items():
        partial = out / f".{file}.partial"
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, out / file)


def read_runs(path: Path) -> dict[str, Any]:
    """The runs of a benchmarks.json.

    Raises:
        ValueError: the file is something else.
        OSError: it cannot be read.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["runs"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: found no figures ({error!r}), expected a benchmarks.json of run_all.py") from error


def main(arguments: Sequence[str] | None = None, benchmarks: Sequence[Benchmark] = BENCHMARKS) -> int:
    """Run them; returns the exit status."""
    names = [benchmark.name for benchmark in benchmarks]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path,
                        help="directory of page, JSON and plots; default: benchmarks/results/MACHINE, with --quick "
                             "runs/benchmarks")
    parser.add_argument("--data", type=Path, default=language_table(), help="directory of a Language-Table set")
    parser.add_argument("--beside", type=Path, help="benchmarks.json of another machine, for a table of both")
    options = parser.parse_args(arguments)
    out = options.out or (ROOT / "runs" / "benchmarks" if options.quick else HERE / "results" / family())
    try:
        runs = read_runs(out / "benchmarks.json") if (out / "benchmarks.json").is_file() else {}
        beside = read_runs(options.beside) if options.beside else None
    except (OSError, ValueError) as error:
        parser.error(str(error))
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(quick=options.quick, data=options.data, scratch=Path(scratch))
        for benchmark in [benchmark for benchmark in benchmarks if benchmark.name in options.only]:
            print(f"{benchmark.name}:", flush=True)
            runs[benchmark.name] = entry = runner.run(benchmark)
            failed |= entry["status"] == FAILED
            reason = f": {entry['reason'].splitlines()[0]}" if entry.get("reason") else ""
            print(f"{benchmark.name}: {entry['status']}{reason}, {entry.get('seconds', 0):.0f} s", flush=True)
            write(out, {name: runs[name] for name in [*names, *runs] if name in runs}, beside)
    print(f"page: {out / 'benchmarks.md'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
