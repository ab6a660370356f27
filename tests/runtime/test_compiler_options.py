"""Which options XLA compiles a step with."""

import importlib.util
import types

import jax
import jax.numpy as jnp
import numpy as np

from agent_jax.runtime import compiler_options as shared


def fresh_copy() -> types.ModuleType:
    """The module as a user imports it: conftest.py changes the options of the shared one."""
    spec = importlib.util.spec_from_file_location("compiler_options_of_users", shared.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


module = fresh_copy()
compiler_options = module.compiler_options


def test_a_platform_gets_options_that_xla_takes():
    cpu = jax.devices("cpu")[0]
    options = compiler_options(cpu, "float32")
    assert options["xla_backend_optimization_level"] == 1
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    doubled = jax.jit(lambda x: jnp.sum(2 * x, axis=0), compiler_options=options)(x)
    np.testing.assert_array_equal(doubled, 2 * x.sum(0))
    gpu, tpu = (types.SimpleNamespace(platform=platform) for platform in ("gpu", "tpu"))
    assert compiler_options(tpu, "bfloat16") == {}
    # XLA's GPU options are known to it wherever it is built.
    assert compiler_options(gpu, "bfloat16")["xla_gpu_enable_dynamic_slice_fusion"] is False


def test_bfloat16_and_many_layers_keep_the_newer_code_for_fusions():
    cpu = jax.devices("cpu")[0]
    for options in (compiler_options(cpu, "bfloat16"), compiler_options(cpu, "float32", layers=12)):
        assert options == {"xla_backend_optimization_level": 1}


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "_ANY_DTYPE", {"xla_cpu_of_another_version": True})
    assert "xla_cpu_of_another_version" not in compiler_options(jax.devices("cpu")[0], "float32")
