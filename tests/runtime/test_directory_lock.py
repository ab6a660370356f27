"""Who holds a lock, when it is stale, and that one of several takes it over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent_jax.runtime import directory_lock
from agent_jax.runtime.directory_lock import DirectoryLock, LockedError

HOLDER = """
import sys, time
from agent_jax.runtime.directory_lock import DirectoryLock
with DirectoryLock(sys.argv[1], "the folder", "wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


def lock_of(tmp_path: Path) -> DirectoryLock:
    return DirectoryLock(tmp_path / "run" / ".lock", "the folder", "wait for it")


def content(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "run" / ".lock").read_text())


def left_by(tmp_path: Path, **fields: object) -> None:
    """A lock file as another process left it."""
    (tmp_path / "run").mkdir(exist_ok=True)
    here = directory_lock._this_process()
    (tmp_path / "run" / ".lock").write_text(json.dumps({**here, "token": "theirs", "command": "train", "since": 0.0,
                                                        "alive": 0.0, **fields}))


def test_a_second_process_is_refused_by_name_and_may_begin_at_once_when_the_first_was_killed(
        tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], env={**os.environ, "PYTHONPATH": str(root)},
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"the folder is in use by process {holder.pid} on host ") as refusal:
            lock_of(tmp_path).acquire()
        assert content(tmp_path)["host"] in str(refusal.value)
        assert str(refusal.value).endswith("; wait for it")
        holder.send_signal(signal.SIGKILL)
    assert path.exists()
    with lock_of(tmp_path) as lock:
        assert content(tmp_path)["pid"] == os.getpid()
        lock.check()
    assert "waiting" not in capsys.readouterr().err
    assert list(path.parent.iterdir()) == []


def test_it_may_be_taken_again_inside_and_goes_with_the_last(tmp_path: Path):
    lock = lock_of(tmp_path)
    with lock:
        with lock:
            pass
        assert content(tmp_path)["pid"] == os.getpid()
        with pytest.raises(LockedError, match=f"process {os.getpid()}"):
            lock_of(tmp_path).acquire()
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("fields", [{"pid": os.getppid()}, {"pid": 2**22 + 1}, {"pid": "?"}],
                         ids=["a number of another process", "no process", "no number"])
def test_a_process_of_this_machine_that_has_ended_is_told_by_number_and_start(tmp_path: Path, fields: dict):
    left_by(tmp_path, started="1", **fields)
    with lock_of(tmp_path):
        assert content(tmp_path)["token"] != "theirs"


def test_a_lock_of_another_machine_is_stale_without_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                   capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(directory_lock, "PATIENCE_S", 0.5)
    monkeypatch.setattr(directory_lock, "BEAT_S", 0.05)
    left_by(tmp_path, machine="elsewhere", host="node7", pid=4711)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            os.utime(tmp_path / "run" / ".lock")

    with ThreadPoolExecutor() as pool:
        pool.submit(beat)
        try:
            with pytest.raises(LockedError, match="process 4711 on host node7"):
                lock_of(tmp_path).acquire()
        finally:
            ended.set()
    with lock_of(tmp_path):
        assert content(tmp_path)["pid"] == os.getpid()
    assert "the folder is locked by process 4711 on host node7" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"machine": "elsewhere", "pid": 4711}', "", "[1]", "not JSON"])
def test_what_has_given_no_sign_for_long_is_taken_over_at_once_whatever_it_holds(
        tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / ".lock"
    path.write_text(text)
    long_ago = time.time() - directory_lock.OLD_S - 60
    os.utime(path, (long_ago, long_ago))
    with lock_of(tmp_path):
        assert content(tmp_path)["pid"] == os.getpid()
    assert "waiting" not in capsys.readouterr().err


def test_one_of_many_takes_a_stale_lock_over(tmp_path: Path):
    for _ in range(5):
        left_by(tmp_path, started="1")

        def attempt(_: int) -> DirectoryLock | None:
            lock = lock_of(tmp_path)
            try:
                lock.acquire()
            except LockedError:
                return None
            return lock

        with ThreadPoolExecutor(8) as pool:
            taken = [lock for lock in pool.map(attempt, range(8)) if lock]
        assert len(taken) == 1
        assert content(tmp_path)["token"] == taken[0]._content["token"]
        taken[0].release()
        assert list((tmp_path / "run").iterdir()) == []


def test_a_sign_of_life_is_given_and_a_process_that_lost_its_lock_writes_no_more(tmp_path: Path,
                                                                               monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(directory_lock, "BEAT_S", 0.02)
    path = tmp_path / "run" / ".lock"
    with lock_of(tmp_path) as lock:
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            time.sleep(0.01)
        left_by(tmp_path, host="node7", pid=4711)
        with pytest.raises(LockedError, match="the folder was taken over by process 4711 on host node7"):
            lock.check()
    assert content(tmp_path)["token"] == "theirs"  # nor does it remove the other's


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match="run"):
        lock_of(tmp_path).acquire()
