"""One line for each compilation that takes long enough to look like a program that hangs."""

from __future__ import annotations

import functools
import sys

import jax

LONG_COMPILATION_S = 5.0
_EVENT = "/jax/core/compile/backend_compile_duration"  # compiling, or reading from the compilation cache


@functools.cache  # JAX keeps a listener as long as the process lives
def announce_compilations() -> None:
    """From now on, tell on standard error of each compilation of this process of at least `LONG_COMPILATION_S`."""

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        if event == _EVENT and duration_secs >= LONG_COMPILATION_S:
            name = about.get("fun_name", "a program")
            print(f"compiled {name} in {duration_secs:.1f} s", file=sys.stderr, flush=True)

    jax.monitoring.register_event_duration_secs_listener(listen)
