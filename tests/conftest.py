"""Set-up of the whole test run: 8 fake CPU devices, one compilation cache, no network; and the shared fixtures.

Everything here must happen before the jax backend starts, so no test module may create an array while it is imported.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from agent_jax.runtime.processor import cores

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2  # each takes about 3 GiB in the end, and compiling a program is spread over cores as it is

# Tests start processes of their own (`python -m agent_jax...`), which must see these as well: hence the environment.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_GCE_CHECK": "true",  # tensorflow-datasets and tensorstore look for Google's metadata server otherwise
    "TPU_SKIP_MDS_QUERY": "1",  # and so does libtpu, where it is installed
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "SDL_VIDEODRIVER": "dummy",  # pygame, which minigrid imports, must not look for a screen
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    "OMP_NUM_THREADS": "1",  # torch and NumPy; XLA has its own threads, and a laptop has two cores
    "OPENBLAS_NUM_THREADS": "1",
    # Tiny models: compiling takes longer than running, and half as long without optimization. Two workers compile at a
    # time, so each compiles in one thread: splitting a program for several costs more in all.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
                 "--xla_cpu_parallel_codegen_split_count=1",
    "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",  # no test reads which line of Python an operation comes from
}


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Two workers for whole directories; none for single files, names or slow (large) tests, nor without xdist.

    Not by `addopts`, which would make pytest-xdist a condition of running a single test. A file stays in one worker,
    since its tests share what they train.
    """
    whole = all(Path(argument).is_dir() for argument in config.args) and not config.option.keyword
    asked = getattr(config.option, "numprocesses", 0) is not None  # by -n; 0 where there is no xdist
    if (whole and not asked and "not slow" in config.option.markexpr and cores() >= WORKERS and
            "PYTEST_XDIST_WORKER" not in os.environ and not config.option.collectonly and not config.option.usepdb):
        config.option.numprocesses, config.option.dist = WORKERS, "loadfile"


# What a worker makes once for all its files, by a name in those files: such files go to the same worker.
MADE_ONCE = {"straight_run": "small runs", "smoke_run": "small runs", "exported_agents": "exported agents",
             "from served import": "served policies"}


@functools.cache
def _scope(path: str) -> str:
    """What a test file shares a worker by: the kind of thing it uses, or the file itself."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return next((kind for name, kind in MADE_ONCE.items() if name in text), path)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For whole directories, as above: whole files in one worker, and together those that use the same trained runs."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(super()._split_scope(nodeid))

    return Scheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Configure jax and hypothesis for this process, and by the environment for those that tests start."""
    cache = getattr(config, "cache", None)  # absent under `-p no:cacheprovider`
    compiled = {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",  # below, reading is no faster than compiling
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if cache is not None:  # kept between runs and shared by xdist workers; `pytest --cache-clear` empties it
        compiled["JAX_COMPILATION_CACHE_DIR"] = str(cache.mkdir("compiled"))
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers have that of the process that starts them
        compiled["JAX_COMPILATION_CACHE_DIR"] = scratch = tempfile.mkdtemp(prefix="agent_jax_compiled_")
        config.add_cleanup(lambda: shutil.rmtree(scratch, ignore_errors=True))
    for name, value in {**ENVIRONMENT, **compiled}.items():
        os.environ.setdefault(name, value)

    import hypothesis
    import jax

    from agent_jax.runtime import compiler_options

    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")  # a silent (S,) + (B, S) is how axes get mixed up
    jax.config.update("jax_traceback_in_locations_limit", int(os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"]))
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs",
                      float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes",
                      int(os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"]))

    # The options of train steps and policies stand above XLA_FLAGS. Programs that tests start keep those of a user.
    compiler_options._ANY_DTYPE.update(compiler_options.QUICKLY_COMPILED)

    # The first example of a property compiles, so no deadline; the same examples in every run.
    hypothesis.settings.register_profile("agent_jax", deadline=None, derandomize=True, database=None, print_blob=True)
    hypothesis.settings.load_profile("agent_jax")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what is imported by now out of garbage collection, which takes a fifth of the time of tracing otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: the directory that holds setup.py, configs/ and README.md."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path | None:
    """Real data and tokenizer files beside the checkout, or None: `AGENT_JAX_SHARED`, by default ../shared."""
    path = Path(os.environ.get("AGENT_JAX_SHARED") or ROOT.parent / "shared")
    return path if path.is_dir() else None


def _found(shared: Path | None, relative: str) -> Path:
    path = None if shared is None else shared / relative
    if path is None or not path.exists():
        pytest.skip(f"needs {relative} under ../shared, or where AGENT_JAX_SHARED points")
    return path


@pytest.fixture(scope="session")
def opt_tokenizer(shared_data: Path | None) -> Path:
    """Directory of OPT's vocab.json and merges.txt; skips the test where there is none."""
    return _found(shared_data, "tokenizers/opt")


@pytest.fixture(scope="session")
def language_table_data(shared_data: Path | None) -> Path:
    """The data set language_table_oracle_mini (220 episodes); skips the test where there is none."""
    return _found(shared_data, "data/language_table_oracle_mini/0.0.1")


@pytest.fixture
def splash_here(monkeypatch):
    """Splash attention at any length, interpreted instruction by instruction, as this machine has no TPU."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    from agent_jax.models import attention_kernels as flash_attention

    monkeypatch.setattr(kernel, "make_splash_mha", functools.partial(kernel.make_splash_mha, interpret=True))
    monkeypatch.setattr(flash_attention, "SPLASH_LEAST", 1)
