"""Where wall time goes: phases that interrupt each other add up to the whole, and compiling is told apart from them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from agent_jax.train.phases import COMPILE, DATA_WAIT, DEMONSTRATIONS, IMPORT, OTHER, STEP, Phases


@pytest.fixture
def listeners() -> Iterator[None]:
    """Whoever listens to JAX here stops listening afterwards."""
    from jax._src import monitoring

    before = monitoring.get_event_duration_listeners()
    yield
    for listener in monitoring.get_event_duration_listeners():
        if listener not in before:
            monitoring.unregister_event_duration_listener(listener)


def test_a_phase_within_another_interrupts_it_and_all_add_up_to_the_time_since_the_process_started(
        monkeypatch: pytest.MonkeyPatch):
    clock = SimpleNamespace(now=100.0, time=time.time, perf_counter=lambda: clock.now)
    monkeypatch.setattr("agent_jax.train.phases.time", clock)
    phases = Phases()
    with phases.time("outer"):
        clock.now += 1
        with phases.time("inner"):
            clock.now += 5
            phases.add("noted", 3)
        with phases.time("inner"):
            clock.now += 1
        clock.now += 2
    clock.now += 7
    seconds = phases.to_json()["seconds"]
    imported = seconds.pop(IMPORT)
    assert imported > 0
    assert seconds == pytest.approx({"outer": 3, "inner": 3, "noted": 3, OTHER: 7}, abs=0.01)
    assert phases.total() == pytest.approx(imported + 16, abs=0.01)


@pytest.mark.usefixtures("listeners")
def test_tracing_and_compiling_are_a_phase_of_their_own_and_counted_once_however_they_are_nested():
    phases = Phases()
    phases.count_compiling()

    def inner(x_D: jax.Array) -> jax.Array:
        time.sleep(0.05)  # while it is traced
        return jnp.sin(x_D) * 2

    nested = jax.jit(lambda x_D: jax.jit(inner)(x_D) + 1)
    begun = time.perf_counter()
    with phases.time(STEP):
        nested(jnp.zeros(3)).block_until_ready()
    passed = time.perf_counter() - begun
    assert 0.05 <= phases.seconds[COMPILE] <= passed
    assert phases.seconds[COMPILE] + phases.seconds[STEP] == pytest.approx(passed, abs=1e-3)
    compiled = phases.seconds[COMPILE]
    with phases.time(STEP):
        nested(jnp.zeros(3)).block_until_ready()
    assert phases.seconds[COMPILE] - compiled < 0.05


def test_demonstrations_are_no_part_of_what_the_first_step_took_and_data_wait_is_a_share_of_the_loop():
    phases = Phases()
    with phases.time(DEMONSTRATIONS):
        time.sleep(0.1)
    assert phases.to_json()["seconds_to_first_step"] is None
    phases.first_step_ended()
    phases.add(DATA_WAIT, 1.0)
    phases.add(STEP, 3.0)
    report = phases.to_json()
    assert report["data_wait_share"] == 0.25
    assert report["seconds_to_first_step"] == pytest.approx(phases.total() - 0.1, abs=0.05)
    assert "demonstrations not counted; data wait 25.0% of waiting and stepping" in str(phases)


def test_training_imports_at_its_start_nothing_that_it_may_never_need(root: Path):
    names = ["torch", "transformers", "huggingface_hub", "safetensors.torch", "tensorflow", "scipy.stats", "matplotlib",
             "minigrid", "gymnasium", "mujoco", "vizdoom", "av", "pydicom", "pyarrow", "websockets", "sacrebleu"]
    program = f"import sys, agent_jax.train; print(*[name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(root)}, text=True,
                          capture_output=True, check=True, timeout=120)
    assert done.stdout.split() == []
