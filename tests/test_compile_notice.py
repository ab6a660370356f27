"""A long compilation is told, with its time; a short one is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agent_jax import compile_notice


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    compile_notice.announce_compilations(lines.append)
    monkeypatch.setattr(compile_notice, "LONG_COMPILATION_S", 1e-6)
    return lines


def test_a_compilation_that_takes_long_is_told_with_its_name_and_time(said, monkeypatch):
    def doubled(x):
        return 2 * x

    jax.jit(doubled)(np.ones(7))
    (line,) = (line for line in said if "doubled" in line)
    assert line.endswith(" s")
    monkeypatch.setattr(compile_notice, "LONG_COMPILATION_S", 60.0)
    before = len(said)
    jax.jit(lambda x: jnp.sin(doubled(x)))(np.ones(7))
    assert len(said) == before
