"""One line for each compilation that takes long enough to look like a program that hangs."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

LONG_COMPILATION_S = 5.0
_EVENT = "/jax/core/compile/backend_compile_duration"  # compiling, or reading from the compilation cache


@functools.cache  # JAX keeps its listeners as long as the process lives
def announce_compilations(say: Callable[[str], None] = functools.partial(print, flush=True)) -> None:
    """Call `say` after each compilation of this process that takes at least `LONG_COMPILATION_S`, with its time."""

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        if event == _EVENT and duration_secs >= LONG_COMPILATION_S:
            say(f"compiled {about.get('fun_name', 'a program')} in {duration_secs:.1f} s")

    jax.monitoring.register_event_duration_secs_listener(listen)
