"""A session on a GPU: parts in order, each with a limit; nothing is lost however it ends, and a second call goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_session  # of benchmarks/
import pytest
import run_all

# The session starts its parts with a preexec_fn, so it forks. It holds no JAX backend itself; this process does.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork", "ignore:Exception ignored in. <function _at_fork")

# Writes figures as it goes, and sleeps between them; counts its calls.
SCRIPT = """
import json, pathlib, sys, time
arguments = sys.argv[1:]
output = pathlib.Path(arguments[arguments.index("--json") + 1])
with open(pathlib.Path(__file__).with_suffix(".calls"), "a") as file:
    file.write("x")
count = int(arguments[0])
for number in range(1, count + 1):
    partial = output.with_suffix(".tmp")
    partial.write_text(json.dumps({"found": {str(one): one for one in range(number)}}))
    partial.rename(output)
    print(f"figure {number}", flush=True)
    if count > 1:
        time.sleep(float(arguments[1]))
"""
PARTS = (gpu_session.Part("losses", "1 0", "1 0", limit_s=60), gpu_session.Part("step", "40 0.5", "40 0.5", limit_s=60),
         gpu_session.Part("products", "1 0", "1 0", limit_s=60))
DRIVER = """
import pathlib, sys
import run_all, gpu_session
run_all.HERE = pathlib.Path(sys.argv[1])
part = gpu_session.Part
gpu_session.PARTS = (PARTS_HERE)
sys.exit(gpu_session.main(["--tiny", "--out", sys.argv[2]]))
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for part in PARTS:
        (folder / f"{part.name}.py").write_text(SCRIPT)
    monkeypatch.setattr(run_all, "HERE", folder)
    monkeypatch.setattr(gpu_session, "PARTS", PARTS)
    monkeypatch.setattr(gpu_session, "set_environment", lambda cache, has_gpu: None)
    monkeypatch.setattr(gpu_session, "gpus", list)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # the session's handlers are not for pytest
    return folder


@pytest.fixture
def gpu(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_session, "gpus", lambda: ["gpu NVIDIA H200"])


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "session.json").read_text())["runs"]


def calls(scripts: Path, name: str) -> int:
    return len((scripts / f"{name}.calls").read_text())


def test_a_part_that_outlasts_its_limit_keeps_its_figures_and_a_second_call_goes_on(
        scripts: Path, gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_session, "PARTS", (PARTS[0], gpu_session.Part("step", "9 1", "9 1", limit_s=2), PARTS[2]))
    out = tmp_path / "out"
    assert gpu_session.main(["--out", str(out)]) == 1
    runs = read(out)
    assert {name: run["status"] for name, run in runs.items()} == {"losses": "ok", "step": "cut off", "products": "ok"}
    assert "longer than 2 s" in runs["step"]["reason"]
    assert 1 <= len(runs["step"]["figures"]["found"]) < 9
    assert "Not done: step." in (out / "session.md").read_text()

    monkeypatch.setattr(gpu_session, "PARTS", (PARTS[0], gpu_session.Part("step", "3 0", "3 0"), PARTS[2]))
    assert gpu_session.main(["--out", str(out)]) == 0
    assert len(read(out)["step"]["figures"]["found"]) == 3
    assert [calls(scripts, part.name) for part in PARTS] == [1, 2, 1]
    assert gpu_session.main(["--out", str(out), "--only", "losses", "--again"]) == 0
    assert calls(scripts, "losses") == 2


def test_what_was_measured_is_kept_when_the_next_try_is_cut_off_sooner():
    many = {"status": "cut off", "figures": {"a": 1, "b": 2}}
    few = {"status": "cut off", "figures": {"a": 1}}
    done = {"status": "ok", "figures": {"a": 1}}
    assert gpu_session.better(few, many) is many
    assert gpu_session.better(many, few) is many
    assert gpu_session.better(done, many) is done
    assert gpu_session.better(many, done) is done


def test_no_part_begins_when_the_time_is_up(scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert gpu_session.main(["--tiny", "--out", str(tmp_path / "out"), "--minutes", "0.05"]) == 1
    assert not list(scripts.glob("*.calls"))
    assert "losses: not begun" in capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    with pytest.raises(SystemExit):
        gpu_session.main([str(argument) for argument in arguments])
    return capsys.readouterr().err.splitlines()[-1]


def test_figures_of_other_sizes_machines_and_versions_are_not_mixed(
        scripts: Path, gpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    assert gpu_session.main(["--out", str(out), "--only", "losses"]) == 0
    assert re.search(r"--out: .*session\.json.* without --tiny", refusal(capsys, "--tiny", "--out", out))
    monkeypatch.setattr(gpu_session, "gpus", lambda: ["gpu NVIDIA A100"])
    assert re.search(r"--out: .*session\.json.* H200, not gpu NVIDIA A100", refusal(capsys, "--out", out))
    monkeypatch.setattr(gpu_session, "gpus", lambda: ["gpu NVIDIA H200"])
    content = json.loads((out / "session.json").read_text())
    content["runs"]["losses"]["machine"]["versions"]["jax"] = "0.1"
    (out / "session.json").write_text(json.dumps(content))
    assert re.search(r"--out: .*session\.json.* jax 0\.1, not ", refusal(capsys, "--out", out))


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--minutes", "9"], "nvidia-smi finds no GPU, expected one; pass --tiny"),
    (["--tiny", "--minutes", "0"], "--minutes: found 0, expected more than 0"),
    (["--tiny", "--only", "losses", "speed"], "--only: invalid choice: 'speed' .*losses.*products"),
    (["--tiny", "--data", "/nowhere"], "--data: found no dataset_info.json in /nowhere, expected .*Language-Table"),
    (["--tiny", "--out", "/dev/null/out"], "--out: .*/dev/null/out"),
])
def test_what_a_user_gets_wrong_is_refused_before_anything_runs(
        scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str):
    assert re.search(expected, refusal(capsys, "--out", tmp_path / "out", *arguments))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_session_that_is_ended_loses_nothing_and_leaves_no_process(
        scripts: Path, tmp_path: Path, root: Path, number: signal.Signals):
    out = tmp_path / "out"
    parts = ", ".join(f"part({part.name!r}, {part.full!r}, {part.quick!r})" for part in PARTS)
    driver = DRIVER.replace("PARTS_HERE", parts)
    path = os.pathsep.join([str(root / "benchmarks"), str(root)])
    command = [sys.executable, "-c", driver, str(scripts), str(out)]
    running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    for line in running.stdout:
        if "figure 2" in line:  # of the second part
            break
    running.send_signal(number)
    running.stdout.close()
    assert running.wait(timeout=30) in (128 + number, -number)
    assert read(out)["losses"]["status"] == "ok"
    if number == signal.SIGKILL:
        before = read(out)
        assert "step" not in before
        assert gpu_session.main(["--tiny", "--out", str(out), "--only", "losses"]) == 0  # which is done
    step = read(out)["step"]
    assert step["status"] == "cut off"
    assert len(step["figures"]["found"]) >= 2
    written = (out / "parts" / "step.json").stat().st_mtime_ns
    time.sleep(1.2)
    assert (out / "parts" / "step.json").stat().st_mtime_ns == written  # the part's process is gone


def case(model: str, seconds: float, memory: int, *, compiled: bool = True) -> dict[str, Any]:
    return {"model": model, "framework": "jax" if model in ("ours", "unrolled") else "torch", "compiled": compiled,
            "seconds_per_step": seconds, "flops_per_second": 1e12 / seconds, "mfu": 0.05 / seconds,
            "peak_device_bytes": memory, "compile_seconds": 60.0}


def test_the_page_sets_figures_beside_their_goals():
    cases = [case("unrolled", 0.08, 20), case("ours", 0.1, 10), case("transformers", 0.3, 40, compiled=False),
             case("transformers", 0.1, 16)]
    runs = {"losses": {"status": "ok", "figures": {"largest_difference": 2e-4}},
            "step": {"status": "cut off", "figures": {"cases": cases}},
            "products": {"status": "ok", "figures": {"seconds": 0.06}},
            "act": {"status": "ok", "figures": {"seconds": {"16": {"sliding": {"action": 0.02}}}}}}
    lines = gpu_session.summary(runs)
    for expected in ("| 2.0e-04 | 1e-03 | met |", "visible: MFU | 62% | 50% | met", "PyTorch | 1.25 | 1.5 | **missed**",
                     "memory / compiled PyTorch's | 1.25 | at most 1 | **missed**", "/ the step | 75% | 70% | met",
                     "batch 16 | sliding 20.0 ms", "Not done: step, step_all"):
        assert expected in lines, (expected, lines)


def test_every_dependency_is_among_the_wheels_or_in_the_image(root: Path):
    text = (root / "benchmarks" / "gpu_wheels.txt").read_text()
    wheels = {line for line in text.splitlines() if line and not line.startswith("#")}
    image = {"jax", *text.partition("of our dependencies:")[2].partition(".")[0].replace("#", "").split()}
    required = re.search(r"REQUIRED = \[(.*?)\n\]", (root / "setup.py").read_text(), re.S)
    assert required is not None
    for wanted in re.findall(r'^    "([^"]+)"', required[1], re.M):
        name = re.split(r"[<>=\[]", wanted)[0]
        assert name in image or re.sub(r"\[\w+\]", "", wanted) in wheels, f"gpu_wheels.txt lacks {wanted}"


@pytest.mark.slow
def test_a_whole_session_runs_at_tiny_sizes(root: Path, tmp_path: Path):
    command = [sys.executable, str(root / "benchmarks" / "gpu_session.py"), "--tiny", "--out", str(tmp_path / "out")]
    # What Inductor compiles for a CPU is not what it compiles for a GPU, and takes a minute.
    environment = {**os.environ, "PYTHONPATH": str(root), "TORCH_COMPILE_DISABLE": "1", "OMP_WAIT_POLICY": "passive",
                   "AGENT_JAX_SHARED": "/nowhere"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = read(tmp_path / "out")
    assert {name: run["status"] for name, run in runs.items()} == {part.name: "ok" for part in gpu_session.PARTS}
    figures = {name: run["figures"] for name, run in runs.items()}
    assert figures["losses"]["largest_difference"] == 0
    cases = [(case["model"], case["compiled"]) for part in ("step", "step_all") for case in figures[part]["cases"]]
    assert cases == [("unrolled", True), ("transformers", True), ("ours", True), ("transformers", False)]
    assert all(figures[f"products{mode}"]["seconds"] > 0 for mode in ("", "_all"))
    assert figures["profile"]["by_kind"]["matrix product"] > 0
    assert set(figures["act"]["seconds"]["1"]) == {"sliding", "pytorch"}
    assert figures["input"]["synthetic"]
    assert figures["input"]["rates"]["ours"]["frames_per_s"] > 0
    page = (tmp_path / "out" / "session.md").read_text()
    assert "| losses of the first steps, from the CPU's | 0.0e+00 | 1e-03 | met |" in page
    assert "Not done" not in page
