"""The compilation cache of a run: where it lies, who is asked first, and that a second start does not compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from agent_jax.runtime.compile_cache import use_compile_cache
from agent_jax.runtime.processor import processor_fingerprint

# Prints how many programs were read from the cache and how many were compiled and written to it.
PROGRAM = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
from agent_jax.runtime import compile_cache
compile_cache._WORTH_KEEPING_S = 0.0
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event.rpartition("/")[2]))
compile_cache.use_compile_cache("compiled", Path(sys.argv[1]))
jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8)))
print(found.count("cache_hits"), found.count("cache_misses"))
"""


@pytest.fixture
def no_cache() -> object:
    """JAX as where nobody has given it a cache."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("no_cache")
def test_the_cache_lies_in_the_workdir_by_processor_unless_the_config_says_otherwise(tmp_path: Path):
    assert use_compile_cache("compiled", tmp_path) == tmp_path / "compiled" / processor_fingerprint()
    jax.config.update("jax_compilation_cache_dir", None)
    elsewhere = tmp_path / "elsewhere" / processor_fingerprint()
    assert use_compile_cache(str(tmp_path / "elsewhere"), Path("run")) == elsewhere
    assert jax.config.jax_compilation_cache_dir == str(elsewhere)
    jax.config.update("jax_compilation_cache_dir", None)
    assert use_compile_cache("", tmp_path) is None
    assert jax.config.jax_compilation_cache_dir is None
    assert list(tmp_path.iterdir()) == []  # made by JAX, when it first compiles


@pytest.mark.usefixtures("no_cache")
def test_a_cache_that_jax_has_been_given_stays(tmp_path: Path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "given"))
    assert use_compile_cache("compiled", tmp_path) == tmp_path / "given"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "given")


def test_a_second_process_reads_what_the_first_compiled(tmp_path: Path, root: Path):
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    counts = []
    for _ in range(2):
        line = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True, timeout=120)
        counts.append([int(number) for number in done.stdout.split()])
    (hits, compiled), (hits_again, compiled_again) = counts
    assert hits == 0
    assert compiled > 0
    assert (hits_again, compiled_again) == (compiled, 0)
    assert len(list((tmp_path / "compiled" / processor_fingerprint()).glob("*-cache"))) == compiled
