"""Training runs of a tiny model that several test modules look at; each is made once a test session."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from data_stores import babyai_store

from agent_jax.config import Config, from_config_dict, presets, to_config_dict
from agent_jax.train import metrics, report, run
from agent_jax.train.loop import train
from agent_jax.train.run import Run
from agent_jax.train.state import TrainState

ROOT = Path(__file__).resolve().parent.parent.parent
STOPPED_AT = 7
STEPS = 20


@functools.cache
def store_directory(base: Path) -> Path:
    """A data set of 16-pixel images."""
    return Path(babyai_store(base / "small_runs" / "store", lengths=(6, 1, 4, 5, 9, 2, 7, 8, 3)).directory)


def small_config(store: Path, **changes: Any) -> Config:
    """A run over all 8 devices, averaged, with one frozen parameter; `changes` are fields by dotted name."""
    draft: presets.Draft = to_config_dict(Config()).unlock()
    presets.tiny_run(draft, steps=STEPS)
    presets.small_model(draft, image_size=16, patch_size=8, width=16, heads=2, vision_depth=1, language_depth=1,
                        positions=64)
    draft.vocabulary.blocks = ("babyai",)
    draft.data.domains = {"tiles": presets.domain(path=str(store), window=2, stride=2, max_text=16)}
    draft.optimizer.learning_rate = 1e-2
    draft.optimizer.ema = 0.9
    draft.optimizer.freeze = ("vision/patch_embedding/kernel",)
    draft.model.vision.positions = "clip"
    draft.train.batch_size = 8
    draft.checkpoint.every = 10
    draft.update_from_flattened_dict({name: value for name, value in changes.items() if "." in name or name == "seed"})
    return from_config_dict(draft)


def open_run(config: Config, workdir: Path) -> Run:
    return run.open_run(config, workdir, report.Phases())


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that is over."""

    config: Config  # as given, without the vocabulary's size
    run: Run
    state: TrainState  # the last one
    validation: metrics.Record | None

    @property
    def workdir(self) -> Path:
        return self.run.workdir


def trained(config: Config, workdir: Path) -> Trained:
    run = open_run(config, workdir)
    return Trained(config, run, *train(run, *run.open_streams()))


@functools.cache
def straight_run(base: Path) -> Trained:
    """20 steps in one go; checkpoints of 10 and 20. Nobody writes to its workdir: tests copy it."""
    return trained(small_config(store_directory(base)), base / "small_runs" / "straight")


@functools.cache
def stopped_run(base: Path) -> Trained:
    """The same, but a SIGTERM comes while step 7 computes."""
    wrote = metrics.MetricsLog.write

    def write(self: metrics.MetricsLog, record: metrics.Record) -> None:
        wrote(self, record)
        if record.step == STOPPED_AT - 1:  # a step is written while the one after it computes
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.MetricsLog, "write", write)
        return trained(small_config(store_directory(base)), base / "small_runs" / "stopped")


def copied(workdir: Path, to: Path) -> Path:
    return Path(shutil.copytree(workdir, to))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agent_jax.train", *arguments]


def environment(home: Path) -> dict[str, str]:
    """Of a command that a user starts: the device count is the command's own affair."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home), "PYTHONUNBUFFERED": "1"}


@dataclasses.dataclass(frozen=True)
class Smoke:
    """The smoke run of BabyAI by its real command: ended by a SIGTERM after its first line, then started again."""

    workdir: Path
    json: Path
    stopped: subprocess.CompletedProcess[str]
    steps_after_stop: list[str]  # names in the checkpoints directory
    compiled: list[str]  # names in the compilation cache, by then
    finished: subprocess.CompletedProcess[str]


@functools.cache
def smoke_run(base: Path) -> Smoke:
    """The run, which the first who asks makes for all workers of the session: it takes most of a minute."""
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    told = base / "smoke.json"
    with (base / "smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released as the file is closed
        if not told.exists():
            told.write_text(json.dumps(_smoke_run(base), default=vars))
    said = json.loads(told.read_text())
    ended = {name: subprocess.CompletedProcess(**said.pop(name)) for name in ("stopped", "finished")}
    return Smoke(Path(said.pop("workdir")), Path(said.pop("json")), **ended, **said)


def _smoke_run(base: Path) -> dict[str, Any]:
    home, workdir, copy = (base / "small_runs" / name for name in ("home", "smoke", "copy.json"))
    home.mkdir(parents=True, exist_ok=True)
    config = str(ROOT / "configs" / "babyai.py:smoke")
    line = command("--config", config, "--workdir", str(workdir), "--json", str(copy))
    own_cache = environment(home)
    own_cache.pop("JAX_COMPILATION_CACHE_DIR", None)  # the session's: a user has the one in the workdir
    with (home / "stderr").open("w+") as errors, \
            subprocess.Popen(line, env=own_cache, stdout=subprocess.PIPE, stderr=errors, text=True) as running:
        assert running.stdout is not None
        said = []
        for text in running.stdout:
            said.append(text)
            if text.startswith("train "):
                running.send_signal(signal.SIGTERM)
                break
        said += running.stdout.readlines()
        running.wait(timeout=300)
        errors.seek(0)
        stopped = subprocess.CompletedProcess(line, running.returncode, "".join(said), errors.read())
    steps = sorted(path.name for path in (workdir / "checkpoints").glob("*"))
    compiled = sorted(path.name for path in (workdir / "compiled").rglob("*-cache"))
    finished = subprocess.run(line, env=own_cache, capture_output=True, text=True, check=False, timeout=600)
    return {"workdir": str(workdir), "json": str(copy), "stopped": stopped, "steps_after_stop": steps,
            "compiled": compiled, "finished": finished}


def listing(directory: Path) -> dict[str, tuple[int, str]]:
    """Every file below, with the time of its last change and the hash of its content."""
    return {str(path.relative_to(directory)): (path.stat().st_mtime_ns,
                                               hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
            for path in sorted(directory.rglob("*"))}


def flip_a_bit(step: Path) -> None:
    """Damage the largest data file of a step's parameters to act with."""
    files = [path for path in (step / "acting").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0x10
    largest.write_bytes(content)


def differing(one: Any, other: Any) -> Iterator[str]:
    """Paths of the leaves that are not the same to the bit."""
    found, expected = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (one, other))
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        a, b = np.asarray(leaf), np.asarray(expected[path])
        if a.dtype != b.dtype or a.tobytes() != b.tobytes():
            yield jax.tree_util.keystr(path)
