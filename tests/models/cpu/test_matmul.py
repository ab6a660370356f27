"""The product of activations and a kernel, and both its gradients."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agent_jax.models.cpu.matmul import cpu_matmul
from agent_jax.runtime import processor

X, D, M = 6, 5, 4


@pytest.fixture(params=[False, True], ids=["", "without bfloat16"])
def lacks(request, monkeypatch) -> bool:
    """Whether the processor is taken for one without instructions for products of bfloat16."""
    found = frozenset({"sse2"} if request.param else {"sse2", "avx512_bf16"})
    monkeypatch.setattr(processor, "instructions", lambda: found)
    return request.param


def operands(dtype: str, *, transposed: bool, rows: int = X):
    random = np.random.default_rng(0)
    x, kernel, g = (random.standard_normal(shape, np.float32) for shape in ((rows, D), (D, M), (rows, M)))
    return jnp.asarray(x, dtype), jnp.asarray(kernel.T if transposed else kernel), jnp.asarray(g)


@pytest.mark.usefixtures("lacks")
@pytest.mark.parametrize("rows", [X, 1])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_it_and_its_gradients_are_those_of_a_plain_product(dtype, tolerance, transposed, rows):
    x, kernel, g = operands(dtype, transposed=transposed, rows=rows)
    plain = lambda x, kernel: jnp.matmul(x, kernel.T if transposed else kernel, precision="highest")  # noqa: E731
    expected, of_plain = jax.vjp(plain, x.astype(jnp.float32), kernel)
    found, of_product = jax.vjp(lambda x, kernel: cpu_matmul(x, kernel, jnp.float32, transposed=transposed), x, kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    for ours, theirs, like in zip(of_product(g), of_plain(g), (x, kernel), strict=True):
        assert (ours.dtype, ours.shape) == (like.dtype, like.shape)
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.usefixtures("lacks")
def test_the_gradient_of_the_kernel_is_not_rounded_to_the_compute_dtype():
    x, kernel, g = operands("bfloat16", transposed=False)
    _, pull = jax.vjp(lambda kernel: cpu_matmul(x, kernel, jnp.bfloat16), kernel)
    found = pull(g.astype(jnp.bfloat16))[0]
    exact = np.einsum("xd,xm->dm", *(np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, g)))
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
    assert np.abs(np.asarray(jnp.asarray(exact).astype(jnp.bfloat16), np.float64) - exact).max() > 1e-4


def test_a_kernel_of_several_axes_gives_the_same_on_one_device_and_on_several():
    x, kernel, g = operands("float32", transposed=False)
    wide, g3 = jnp.stack([kernel, 2 * kernel, 3 * kernel], axis=1), jnp.stack([g, g + 1, g + 2], axis=1)  # (D, 3, M)

    def found():
        made, pull = jax.vjp(lambda x, kernel: cpu_matmul(x, kernel, jnp.float32), x, wide)
        return made, *pull(g3)

    expected, of_plain = jax.vjp(lambda x, kernel: jnp.einsum("xd,dkm->xkm", x, kernel, precision="highest"), x, wide)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("tensor",))):
        several = str(jax.jit(found).trace().jaxpr).replace(" ", "")
    assert "3,4]" in several
    assert "12]" not in several  # not joined
    for ours, theirs in zip(found(), (expected, *of_plain(g3)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5)


@pytest.mark.usefixtures("lacks")
def test_on_several_devices_bfloat16_operands_give_an_f32_gradient():
    """With operands as they are, jax 0.10.2 compiles that of several axes for CPUs, and cannot execute it."""
    x, kernel, g = (jnp.ones(shape, kind) for shape, kind in
                    (((384, 80), "bfloat16"), ((80, 3, 64), "float32"), ((384, 3, 64), "bfloat16")))
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        x, g = (jax.device_put(value, jax.NamedSharding(mesh, jax.P("data"))) for value in (x, g))
        of_kernel = jax.jit(lambda x, kernel, g: jax.vjp(lambda w: cpu_matmul(x, w, "bfloat16"), kernel)[1](g)[0])(
            x, kernel, g)
    assert of_kernel.dtype == jnp.float32
    np.testing.assert_array_equal(of_kernel, 384)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's code for CPUs")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_three_products_are_of_operands_that_the_processor_is_fast_with(dtype, lacks):
    x, kernel, g = (jnp.ones(shape, kind) for shape, kind in
                    (((384, 80), dtype), ((80, 64), "float32"), ((384, 64), dtype)))  # large enough for library code

    def all_three(x, kernel, g):
        made, pull = jax.vjp(lambda x, kernel: cpu_matmul(x, kernel, dtype), x, kernel)
        return made, pull(g)

    assert kinds_of_operands(all_three, x, kernel, g) == ["f32" if dtype == "float32" or lacks else "bf16"] * 6


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's code for CPUs")
def test_a_product_of_one_row_does_not_make_its_kernel_float32(lacks):
    x, kernel = jnp.ones((1, 768), jnp.bfloat16), jnp.ones((768, 3072), jnp.bfloat16)
    found = kinds_of_operands(lambda x, kernel: cpu_matmul(x, kernel, jnp.bfloat16), x, kernel)
    assert found == ["f32" if lacks else "bf16"] * 2


def kinds_of_operands(function, *arguments) -> list[str]:
    """The types of the operands of every product of a compiled function."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    kinds = dict(re.findall(r"%?([\w.\-]+) = (\w+)\[", text))
    return [kinds[name] for pair in re.findall(r" dot\(%?([\w.\-]+), %?([\w.\-]+)\)", text) for name in pair]
