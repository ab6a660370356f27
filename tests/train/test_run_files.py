"""A workdir on gs://: against an emulator of Google Cloud Storage, by the libraries that write to the real one."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath
from processes import codes, config_file, free_port, losses, started, training_lines, wait_until

from agent_jax.train import run_files
from agent_jax.train.run_files import RunFiles, workdir_path


def test_a_directory_is_written_in_place(tmp_path: Path):
    files = RunFiles(workdir_path(str(tmp_path)))
    assert files.directory == tmp_path
    (tmp_path / "report.json").write_text("{}")
    files.copy()
    files.try_to_copy()
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert workdir_path("~/run") == epath.Path("~/run").expanduser()


def test_storage_that_cannot_be_written_to_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"--workdir=s3://b/run: expected a directory or gs://BUCKET/DIR; .*mount"):
        workdir_path("s3://b/run")
    monkeypatch.setattr(run_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'--workdir=gs://b/run: gcsfs.*is not installed: pip install -e "\.\[gcs'):
        workdir_path("gs://b/run")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which gs://bucket is the emulator's."""
    if not (importlib.util.find_spec("gcp_storage_emulator") and importlib.util.find_spec("gcsfs")):
        pytest.skip("needs gcsfs and gcp-storage-emulator, of the extra dev")
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    script = ("import sys, time; from gcp_storage_emulator.server import create_server; "
              "create_server(sys.argv[1], int(sys.argv[2]), in_memory=True, default_bucket='bucket').start(); "
              "time.sleep(1000)")
    log = tmp_path_factory.mktemp("emulator") / "log"
    with log.open("wb") as output, subprocess.Popen([sys.executable, "-c", script, host, port], stdout=output,
                                                    stderr=output) as emulator:
        def answers() -> bool:
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"http://{address}/storage/v1/b", timeout=2).status == 200
            return False

        wait_until(answers, "the emulator")
        yield {"STORAGE_EMULATOR_HOST": f"http://{address}", "TENSORSTORE_GCS_HTTP_URL": f"http://{address}",
               "GOOGLE_AUTH_TOKEN_FOR_TESTING": "fake", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        emulator.kill()


def in_bucket(environment: dict[str, str], script: str) -> str:
    done = subprocess.run([sys.executable, "-c", f"from etils import epath\nrun = epath.Path('gs://bucket/run')\n{script}"],
                          env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=100)
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_on_a_bucket_is_stopped_resumed_and_leaves_its_files_there(bucket: dict[str, str], tmp_path: Path,
                                                                         tmp_path_factory: pytest.TempPathFactory,
                                                                         monkeypatch: pytest.MonkeyPatch, count: int):
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    base = tmp_path_factory.getbasetemp()
    config = config_file(base, f"bucket-{count}", **{"checkpoint.every": 1, "checkpoint.keep_latest": 2})
    run = f"gs://bucket/run-{count}"
    lines = training_lines(config, run, count)
    with started(lines, tmp_path / "stopped") as processes:
        wait_until(lambda: re.search(r"^train 2", processes[0].said, re.M) is not None, "a step", processes)
        processes[-1].running.send_signal(signal.SIGTERM)
        assert codes(processes) == [0] * count, [process.complained for process in processes]
    step = int(re.findall(r"stopped by SIGTERM after step (\d)", processes[0].said)[0])
    with started(training_lines(config, run, count), tmp_path / "finished") as processes:
        assert codes(processes) == [0] * count, [process.complained for process in processes]
    assert f"resumed from step {step} in {run}/checkpoints" in processes[0].said
    copied = tmp_path / "copy"
    copied.mkdir()
    listing = in_bucket(bucket, f"""
import sys
run = epath.Path("{run}")
print(sorted(path.name for path in run.iterdir()), sorted(path.name for path in (run / "checkpoints").iterdir()))
epath.Path("{copied}/metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
print((run / "report.json").read_text().replace(chr(10), ""))
""").splitlines()
    assert "'metrics.jsonl', 'pictures', 'report.html', 'report.json', 'tensorboard'" in listing[0]
    assert "['5', '6']" in listing[0]
    assert json.loads(listing[1])["steps"] == 6
    assert sorted(losses(copied)) == [1, 2, 3, 4, 5, 6]
