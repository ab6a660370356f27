"""Set-up of the whole test run: 8 fake CPU devices, one compilation cache, no network; and the shared fixtures.

Everything here must happen before the jax backend starts, so no test module may create an array while it is imported.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path

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
    # Tiny models: compiling takes longer than running, and half as long without optimization.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
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

    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")  # a silent (S,) + (B, S) is how axes get mixed up
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs",
                      float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes",
                      int(os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"]))

    # The first example of a property compiles, so no deadline; the same examples in every run.
    hypothesis.settings.register_profile("agent_jax", deadline=None, derandomize=True, database=None, print_blob=True)
    hypothesis.settings.load_profile("agent_jax")


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
