"""end_to_end.py: the table of a job's time, a command stopped after its first step, and what it refuses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import end_to_end  # of benchmarks/
import pytest

# In the place of the training command: says its steps, and writes a file when it is told to stop.
RUN = """
import signal, sys, time
def stop(*_):
    open(sys.argv[1], "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
for line in {lines}:
    print(line, flush=True)
time.sleep(60 * {waits})
"""


@pytest.mark.parametrize(("lines", "waits"), [(["head", "train 1/3  loss 2"], 1), (["head"], 0)])
def test_a_start_is_timed_to_its_first_step_and_then_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            lines: list[str], waits: int):
    program, stopped = tmp_path / "run.py", tmp_path / "stopped"
    program.write_text(RUN.format(lines=lines, waits=waits))
    monkeypatch.setattr(end_to_end, "command", lambda *_: [sys.executable, str(program), str(stopped)])
    if not waits:
        with pytest.raises(RuntimeError, match="ended with 0 before its first step"):
            end_to_end.first_step("c.py", tmp_path, tmp_path, tmp_path)
        return
    found = end_to_end.first_step("c.py", tmp_path, tmp_path, tmp_path)
    assert stopped.exists()
    assert 0 < found["seconds"] < 60
    assert found["processor_seconds"] > 0


def test_the_runs_own_compilation_cache_is_measured_and_not_that_of_the_caller(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    made = end_to_end.environment()
    assert "JAX_COMPILATION_CACHE_DIR" not in made
    assert made["PYTHONPATH"].split(os.pathsep)[0] == str(end_to_end.ROOT)


def test_the_tables_hold_every_phase_its_share_and_the_faster_start():
    job = {"seconds": {"import": 2.0, "compile": 18.0, "step": 180.0}, "seconds_to_first_step": 21.0,
           "data_wait_share": 0.001, "peak_rss_bytes": 2**30}
    starts = {"nothing compiled": [{"seconds": 20.0, "processor_seconds": 33.0},
                                   {"seconds": 19.0, "processor_seconds": 34.0}], "compiled before": []}
    said = end_to_end.tables(json.loads(json.dumps({"job": job, "starts": starts}))).splitlines()
    assert "| compile | 18.0 | 9.0% |" in said
    assert "| **all** | **200.0** | |" in said
    assert "| nothing compiled | 19.0 | 33.0 |" in said
    assert not any(line.startswith("| compiled before") for line in said)


def test_a_workdir_with_files_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "old").write_text("")
    with pytest.raises(SystemExit) as ended:
        end_to_end.main(["--workdir", str(tmp_path)])
    assert ended.value.code == 2
    assert f"found files in {tmp_path}, expected an empty directory" in capsys.readouterr().err
