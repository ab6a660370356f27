"""JAX's persistent compilation cache, in the workdir: a run that is started again does not compile again.

    WORKDIR/compiled/CPU/          CPU: 8 hexadecimal digits of the processor's model and instructions
        jit_step-HASH-cache        a compiled program; HASH: of program, shapes, jaxlib, XLA flags and devices

XLA's CPU programs use every instruction of the processor they were compiled on. JAX reads one that was compiled on
another with no more than a line in the log, and it may die of an illegal instruction; so each kind of processor has a
directory of its own. Of several processes, the first alone writes, and all read: share the workdir, or each of the
others compiles again.
"""

from __future__ import annotations

from pathlib import Path

import jax
from etils import epath

from agent_jax.runtime.processor import processor_fingerprint

# Seconds of compiling below which a program is not kept: reading it back takes about as long.
_WORTH_KEEPING_S = 0.1


def use_compile_cache(directory: str, workdir: Path | epath.Path) -> Path | epath.Path | None:
    """Keep what this process compiles from now on, and read what was kept; call it before the first compilation.

    A cache that JAX has been given already, as by `JAX_COMPILATION_CACHE_DIR`, stays as it is.

    Args:
        directory: `config.train.compile_cache`: below the workdir unless it is absolute; "": no cache.
        workdir: of the run.

    Returns:
        The directory; it need not exist yet. None: no cache.
    """
    if given := jax.config.values["jax_compilation_cache_dir"]:
        return Path(given)
    if not directory:
        return None
    path = workdir / Path(directory).expanduser() / processor_fingerprint()
    place = str(path)  # of a bucket, which JAX writes to as well
    jax.config.update("jax_compilation_cache_dir", place if "://" in place else str(path.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING_S)
    return path
