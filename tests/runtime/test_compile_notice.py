"""A long compilation is told, with its time; a short one is not."""

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.runtime import compile_notice


def test_a_compilation_that_takes_long_is_told_with_its_name_and_time(capsys, monkeypatch):
    def doubled(x):
        return 2 * x

    compile_notice.announce_compilations()
    monkeypatch.setattr(compile_notice, "LONG_COMPILATION_S", 1e-6)
    jax.jit(doubled)(np.ones(7))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "doubled" in line)
    assert line.endswith(" s")
    monkeypatch.setattr(compile_notice, "LONG_COMPILATION_S", 60.0)
    jax.jit(lambda x: jnp.sin(doubled(x)))(np.ones(7))
    assert capsys.readouterr().err == ""
