"""Every kernel of attention: the same test for those that run here, and a compile check for the others."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from packed_rows import TINY, mixed_batch, quick_jit, random_params

from agent_jax.batch import Batch, RowSize
from agent_jax.config import (
    Config,
    DataConfig,
    DomainConfig,
    LanguageConfig,
    MaeConfig,
    MeshConfig,
    ModelConfig,
    TrainConfig,
    VisionConfig,
)
from agent_jax.models.agent import Agent
from agent_jax.models.attention import causal_segment_mask
from agent_jax.models.attention_kernels import KERNELS, cudnn_flops
from agent_jax.models.compute import Compute
from agent_jax.models.cpu.attention import causal_blocks
from agent_jax.models.remat import REMAT_POLICIES
from agent_jax.plan.flops import MATMUL, operations
from agent_jax.plan.topology import find_topology
from agent_jax.runtime import processor
from agent_jax.runtime.sharding import batch_sharding, make_mesh, shard_batch
from agent_jax.train.state import abstract_state
from agent_jax.train.step import make_train_step

ROWS, SLOTS, HEADS, WIDTH = 2, 140, 2, 16  # padded to 256 by splash: two blocks


def queries_keys_values(rows=ROWS):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((rows, SLOTS, HEADS, WIDTH), np.float32) for _ in range(3)]


def segments(rows=ROWS):
    """Two samples and padding in each row; none of the edges is that of a block."""
    segment_BS = np.zeros((rows, SLOTS), np.int32)
    segment_BS[:, :70], segment_BS[:, 70:133] = 1, 2
    segment_BS[1, 30:] += segment_BS[1, 30:] > 0
    return segment_BS


def expected(q, k, v, mask_BSZ):
    """The formula, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bsnh,bznh->bnsz", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores) * np.asarray(mask_BSZ)[:, None]
    return np.einsum("bnsz,bznh->bsnh", weights / weights.sum(-1, keepdims=True), v)


def gradients(pattern, given, last, mask_BSZ):
    """Outputs of a pattern, and gradients of a function of them, in remat as the model has it."""

    def loss(q, k, v):
        out = jax.checkpoint(lambda q, k, v: pattern(q, k, v, last))(q, k, v)
        return jnp.sum(jnp.sin(out * jnp.any(mask_BSZ, axis=2)[..., None, None])), out

    return quick_jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*given)


@pytest.mark.parametrize("name", ["xla", "cpu", "splash"])
@pytest.mark.parametrize("pattern", ["among", "causally"])
@pytest.mark.usefixtures("splash_here")
def test_every_kernel_computes_the_formula_and_its_gradients(name, pattern):
    given, segment_BS = queries_keys_values(), segments()
    mask = np.ones((ROWS, SLOTS, SLOTS), bool) if pattern == "among" else np.asarray(causal_segment_mask(segment_BS))
    (_, out), found = gradients(getattr(KERNELS[name], pattern), given, segment_BS if pattern == "causally" else None,
                                mask)
    np.testing.assert_allclose(out, expected(*given, mask), rtol=0, atol=2e-6)
    dense = lambda q, k, v, _: jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])  # noqa: E731
    (_, same), reference = gradients(dense, given, None, mask)
    np.testing.assert_allclose(out, same, rtol=0, atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-6), found, reference)
    assert all(np.abs(leaf).max() > 0.05 for leaf in reference)


@pytest.mark.parametrize("pattern", ["among", "causally"])
def test_without_its_instructions_nothing_of_bfloat16_is_rounded_but_what_goes_in_and_comes_out(pattern, monkeypatch):
    given, segment_BS = [jnp.asarray(x, jnp.bfloat16) for x in queries_keys_values()], segments()
    last = segment_BS if pattern == "causally" else None
    mask = causal_segment_mask(segment_BS) if last is not None else np.ones((ROWS, SLOTS, SLOTS), bool)
    wanted = expected(*given, mask)
    monkeypatch.setattr(processor, "instructions", lambda: frozenset({"sse2"}))
    (_, out), found = gradients(getattr(KERNELS["cpu"], pattern), given, last, mask)
    (_, rough), _ = gradients(getattr(KERNELS["xla"], pattern), given, last, mask)
    assert [out.dtype, *(leaf.dtype for leaf in found)] == [jnp.bfloat16] * 4
    np.testing.assert_allclose(out.astype(np.float32), wanted, rtol=2**-8, atol=1e-5)  # half a bfloat16
    error, other = (np.abs(x.astype(np.float32) - wanted).mean() for x in (out, rough))
    assert error < 0.8 * other


def cpu_of_bfloat16(pattern, monkeypatch):
    """The CPU's kernel on a processor with instructions for products of bfloat16, and what it is called with."""
    monkeypatch.setattr(processor, "instructions", lambda: frozenset({"sse2", "avx512_bf16"}))
    given = [jnp.asarray(x, jnp.bfloat16) for x in queries_keys_values()]
    segment_BS = segments() if pattern == "causally" else None
    return getattr(KERNELS["cpu"], pattern), given, segment_BS


@pytest.mark.parametrize("pattern", ["among", "causally"])
def test_on_a_cpu_bfloat16_is_as_exact_as_by_xla(pattern, monkeypatch):
    attention, given, segment_BS = cpu_of_bfloat16(pattern, monkeypatch)
    mask = np.ones((ROWS, SLOTS, SLOTS), bool) if segment_BS is None else np.asarray(causal_segment_mask(segment_BS))
    exact = [np.asarray(x, np.float32) for x in given]
    (_, wanted), of_exact = gradients(getattr(KERNELS["xla"], pattern), exact, segment_BS, mask)
    errors = {}
    for name, each in (("cpu", attention), ("xla", getattr(KERNELS["xla"], pattern))):
        (_, out), found = gradients(each, given, segment_BS, mask)
        assert [out.dtype, *(leaf.dtype for leaf in found)] == [jnp.bfloat16] * 4
        errors[name] = [np.abs(a.astype(np.float32) - b).mean() / np.abs(b).mean()
                        for a, b in zip((out, *found), (wanted, *of_exact), strict=True)]
    assert max(errors["cpu"]) < 0.01
    np.testing.assert_array_less(errors["cpu"], 1.3 * np.asarray(errors["xla"]))


@pytest.mark.parametrize("pattern", ["among", "causally"])
def test_on_a_cpu_all_products_of_bfloat16_are_in_the_form_that_is_fast(pattern, monkeypatch):
    attention, given, segment_BS = cpu_of_bfloat16(pattern, monkeypatch)

    def traced(policy):
        kept = jax.checkpoint(lambda q, k, v: attention(q, k, v, segment_BS), policy=policy)
        return jax.jit(jax.grad(lambda q, k, v: jnp.sum(jnp.sin(kept(q, k, v))), argnums=(0, 1, 2))).trace(*given)

    products = [each for each in operations(traced(REMAT_POLICIES["dots"]).jaxpr) if each.group == MATMUL]
    blocks = 1 if segment_BS is None else len(causal_blocks(SLOTS))
    # Scores and output; scores, and the gradients of weights, queries, keys and values. Without a policy both again.
    assert len(products) == 7 * blocks
    assert len([each for each in operations(traced(None).jaxpr) if each.group == MATMUL]) == 9 * blocks
    assert {(each.dtypes, each.dtype) for each in products} == {(("bfloat16", "bfloat16"), "float32")}
    (of_left,), (of_batch,) = {each.axes[0][0] for each in products}, {each.axes[1][0] for each in products}
    assert (of_left, of_batch) == ((3,), (0, 1))  # no transposed left operand

    text = traced(None).lower().compile().as_text()
    kinds = dict(re.findall(r"%?([\w.\-]+) = (\w+)\[", text))
    operands = {kinds[name] for pair in re.findall(r" dot\(%?([\w.\-]+), %?([\w.\-]+)\)", text) for name in pair}
    assert operands == {"bf16"}


def test_on_several_cpu_devices_the_compiler_lays_out_attention(monkeypatch):
    attention, given, segment_BS = cpu_of_bfloat16("causally", monkeypatch)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("data",))):
        products = operations(jax.jit(attention).trace(*given, segment_BS).jaxpr)
    assert {each.dtypes for each in products} == {("float32", "float32")}


@pytest.mark.usefixtures("splash_here")
def test_on_a_mesh_every_device_attends_its_own_rows_and_heads():
    mesh = make_mesh(MeshConfig(replica=2, data=1, fsdp=2, tensor=2))
    given, segment_BS = queries_keys_values(4), segments(4)
    placed = [jax.device_put(x, batch_sharding(mesh)) for x in (*given, segment_BS)]

    def on_mesh(*given):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return KERNELS["splash"].causally(*given)

    compiled = jax.jit(on_mesh).lower(*placed).compile()
    mask = np.asarray(causal_segment_mask(segment_BS))
    np.testing.assert_allclose(compiled(*placed), expected(*given, mask), rtol=0, atol=2e-6)
    spec = compiled.output_shardings.spec  # an axis of one device is left out
    assert (spec[0], spec[2]) == (("replica", "fsdp"), "tensor")


@pytest.mark.usefixtures("splash_here")
def test_the_agent_with_splash_says_what_it_says_with_xla():
    batch, params = mixed_batch(17), random_params(TINY)
    agents = [Agent(TINY, Compute(attention=name)) for name in ("xla", "splash")]
    outputs = [quick_jit(lambda params, batch, agent=agent: agent.apply({"params": params}, batch).logits_BTK)
               (params, batch) for agent in agents]
    real = (batch.language_weight_BT + batch.action_weight_BT) > 0
    one, other = (np.asarray(out)[..., : TINY.language.vocabulary_size][real] for out in outputs)
    assert not np.array_equal(one, other)  # another kernel, so another order of the sums
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(one).max())


def test_short_rows_and_images_are_left_to_xla():
    given, segment_BS = queries_keys_values(), segments()
    for name, last in (("among", None), ("causally", segment_BS)):
        one, other = (str(jax.make_jaxpr(getattr(KERNELS[kernel], name))(*given, last)) for kernel in ("xla", "splash"))
        assert one == other


def test_acting_knows_no_kernel_of_the_machine_that_trained():
    config = dataclasses.replace(TINY, attention="cudnn")
    batch = mixed_batch(17)
    jax.eval_shape(lambda params: Agent(config).apply({"params": params}, batch), random_params(TINY))
    agent = Agent(config, Compute.of(config, config.attention))
    with pytest.raises(RuntimeError, match="cuDNN"):
        jax.eval_shape(lambda params: agent.apply({"params": params}, batch), random_params(TINY))


def kernel_run(attention, slots):
    """A run whose heads are 64 wide, and a batch of it."""
    sizes = {"width": 128, "depth": 2, "heads": 2, "mlp_width": 256}
    model = ModelConfig(vision=VisionConfig(image_size=64, patch_size=16, **sizes), mae=MaeConfig(**sizes),
                        language=LanguageConfig(positions=1024, vocabulary_size=1000, **sizes), dtype="bfloat16",
                        remat="dots", attention=attention)
    config = Config(model=model, mesh=MeshConfig(data=1, fsdp=2, tensor=2),
                    train=TrainConfig(batch_size=8, rows_per_device=2), data=DataConfig({"one": DomainConfig()}))
    return config, Batch.fake(RowSize(2, 64, slots, 8), 8, visual_tokens=17, vocabulary_size=1000)


@pytest.fixture
def some_cudnn(monkeypatch):
    """The version of a cuDNN that is not installed: lowering for it asks for no more."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)


@pytest.mark.usefixtures("some_cudnn")
def test_the_train_step_lowers_to_cudnns_kernels():
    config, batch = kernel_run("cudnn", slots=51)  # odd: padded to 52

    def lowered(mesh):
        step = make_train_step(config, mesh, optax.sgd(1.0))
        traced = step.trace(abstract_state(config, mesh, optax.sgd(1.0)), shard_batch(batch, mesh))
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    text = lowered(make_mesh(MeshConfig(), jax.devices()[:1]))
    # In each stack forward and backward; "dots" keeps what is not to be made again.
    assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
    assert text.count("@__cudnn$fmhaSoftmax(") == 3  # encoder on all and on visible patches, MAE decoder
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 3
    assert "x52x52xbf16>" in text
    # On a mesh, the compiler asks jax how to split each of them by rows and heads.
    calls = 2 + 3 * 2
    assert lowered(make_mesh(config.mesh, jax.devices()[:4])).count("@CustomSPMDPartitioning(") == calls


@pytest.mark.usefixtures("some_cudnn")
def test_the_operations_of_cudnns_kernels_are_those_of_their_products():
    q_BSNH, k_BZNH = (jax.ShapeDtypeStruct((3, slots, 2, 64), jnp.bfloat16) for slots in (10, 14))
    attend = lambda q, k, v: jnp.sum(KERNELS["cudnn"].among(q, k, v)).astype(jnp.float32)  # noqa: E731
    jaxpr = jax.make_jaxpr(jax.grad(attend, argnums=(0, 1, 2)))(q_BSNH, k_BZNH, k_BZNH)
    found = {eqn.primitive.name: cudnn_flops(eqn.primitive.name, [v.aval.shape for v in eqn.invars])
             for eqn in jaxpr.jaxpr.eqns}
    product = 2 * 3 * 2 * 10 * 14 * 64
    assert sorted(flops for flops in found.values() if flops is not None) == [2 * product, 5 * product]


@pytest.mark.tpu_compile
def test_the_train_step_with_splash_compiles_for_tpu_v4():
    pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler: pip install -e '.[tpu]'")
    config, batch = kernel_run("splash", slots=600)
    mesh, optimizer = make_mesh(config.mesh, find_topology("v4-8").described_devices()), optax.sgd(1.0)
    spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    step = make_train_step(config, mesh, optimizer).lower(abstract_state(config, mesh, optimizer), spec).compile()
    # Forward, forward again (remat), and backward for queries and for keys and values.
    assert step.as_text().count('custom_call_target="tpu_custom_call"') == 4
