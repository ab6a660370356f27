"""Which options XLA compiles a step for CPUs with."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax import cpu_options as module
from agent_jax.cpu_options import cpu_options


def test_a_cpu_gets_options_that_its_xla_takes_and_other_platforms_get_none():
    cpu = jax.devices("cpu")[0]
    options = cpu_options(cpu, "float32")
    assert options is not None
    assert options["xla_backend_optimization_level"] == 1
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    doubled = jax.jit(lambda x: jnp.sum(2 * x, axis=0), compiler_options=options)(x)
    np.testing.assert_array_equal(doubled, 2 * x.sum(0))
    for platform in ("gpu", "tpu"):
        assert cpu_options(types.SimpleNamespace(platform=platform), "float32") is None


def test_bfloat16_keeps_the_newer_code_for_fusions():
    cpu = jax.devices("cpu")[0]
    assert cpu_options(cpu, "bfloat16") == {"xla_backend_optimization_level": 1}


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "_ANY_DTYPE", {"xla_cpu_of_another_version": True})
    assert "xla_cpu_of_another_version" not in (cpu_options(jax.devices("cpu")[0], "float32") or {})
