"""What matrix products reach by themselves: one large square one of each framework, and those of our own step.

The first is the roofline of a machine. The second is what is left of a step when everything else costs nothing: each
product of the step, by shape, layout and dtypes, alone, as often as the step runs it. A step's share of it says how
much the rest costs; the first over the second, what the shapes do.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from agent_jax.runtime.processor import cores

SQUARE_WIDTH = {"cpu": 2048, "gpu": 8192}  # of the matrices: 17 GFLOP, and 1.1 TFLOP, which takes a GPU milliseconds
SMALL = 512  # of the benchmark's small sizes
LEAST_SHARE = 0.002  # of the FLOPs: products below are reckoned at the mean rate of the others
AT_LEAST_S = 2e-3  # timed together: calls are sent one after another, and waited for at the end


def square_product(framework: str, precision: str, size: str) -> Callable[[], float]:
    """A function that returns the FLOPs a second of one square matrix product, the best of three.

    Args:
        framework: jax or torch.
        precision: f32 or bf16.
        size: full, or another, for which the matrices are small.
    """
    if framework == "jax":
        import jax
        import jax.numpy as jnp

        from agent_jax.runtime.host_memory import tune_heap

        tune_heap()  # as a run does: or new pages of the result cost as much as small products
        width = SQUARE_WIDTH.get(jax.default_backend(), SQUARE_WIDTH["gpu"]) if size == "full" else SMALL
        kind = {"f32": jnp.float32, "bf16": jnp.bfloat16}[precision]
        x = jax.random.normal(jax.random.key(0), (width, width), kind)  # a GPU is faster on zeros
        product = _jitted(lambda x, y: _dot()(x, y, (1,), (0,), jnp.float32), kind)
        run, wait = (lambda: product(x, x)), jax.block_until_ready
    else:
        import torch

        device = torch_device()
        width = SQUARE_WIDTH["gpu" if device == "cuda" else "cpu"] if size == "full" else SMALL
        y = torch.randn((width, width), dtype={"f32": torch.float32, "bf16": torch.bfloat16}[precision], device=device)
        run, wait = (lambda: torch.mm(y, y)), (lambda _: torch.cuda.synchronize() if device == "cuda" else None)
    wait(run())
    return lambda: 2 * width**3 / min(_seconds(run, wait) for _ in range(3))


def torch_device() -> str:
    """cuda or cpu, with all cores, and float32 products as JAX has them by default: TF32 on a GPU."""
    import torch

    torch.set_num_threads(cores())
    if not torch.cuda.is_available():
        return "cpu"
    torch.set_float32_matmul_precision("high")
    return "cuda"


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product of a step, compiled by itself."""

    shapes: tuple[tuple[int, ...], ...]  # of its operands
    axes: Any  # contracted and batched ones, as jax.lax.dot_general has them
    times: int  # that a step runs it
    flops: int  # of once
    run: Callable[[], Any]

    def seconds(self) -> float:
        """Of once: the median of three measurements."""
        import jax

        return statistics.median(_seconds(self.run, jax.block_until_ready) for _ in range(3))


def alone(found: list[Any], least_share: float = LEAST_SHARE) -> tuple[list[Product], int]:
    """The matrix products of a step, equal ones together, and the FLOPs of all, with those too small to be timed.

    Args:
        found: `agent_jax.plan.flops.operations` of the step; what is no matrix product is passed over.
        least_share: of the FLOPs of all; products below are too small.
    """
    import jax

    from agent_jax.plan.flops import MATMUL, total_flops
    from agent_jax.runtime.host_memory import tune_heap

    tune_heap()
    products = [operation for operation in found if operation.group == MATMUL]
    times: dict[Any, int] = collections.Counter()
    for each in products:
        times[each.shapes, each.dtypes, each.dtype, each.axes, each.flops // each.times] += each.times
    whole = total_flops(products)
    timed: list[Product] = []
    for (shapes, dtypes, dtype, axes, flops), count in times.items():
        if flops * count < least_share * whole:
            continue
        keys = jax.random.split(jax.random.key(0))
        operands = [jax.random.normal(key, shape, kind) for key, shape, kind in zip(keys, shapes, dtypes, strict=True)]
        timed.append(Product(shapes, axes, count, flops, _alone(operands, axes, dtype)))
    for product in timed:
        jax.block_until_ready(product.run())
    return timed, whole


def products_of_step(found: list[Any]) -> Callable[[], float]:
    """A function that returns the seconds of all matrix products of a step, each alone; `found` as in `alone`."""
    timed, whole = alone(found)
    counted = sum(product.times * product.flops for product in timed)
    return lambda: sum(product.times * product.seconds() for product in timed) * whole / counted


def _alone(operands: list[Any], axes: Any, dtype: str) -> Callable[[], Any]:
    """One product, in the model's form; of many heads, in that of models/attention.py."""
    import jax
    import jax.numpy as jnp

    (of_left, of_right), (batch, _) = axes
    if batch:
        if jax.default_backend() == "cpu":  # read in f32, and XLA makes it so
            dtype = jnp.promote_types(dtype, jnp.float32).name
            operands = [operand.astype(dtype) for operand in operands]
        dot = _jitted(lambda x, y: jax.lax.dot_general(x, y, axes, preferred_element_type=dtype), operands[0].dtype)
    else:
        dot = _jitted(lambda x, y: _dot()(x, y, tuple(of_left), tuple(of_right), dtype), operands[0].dtype)
    return lambda: dot(*operands)


def _dot() -> Callable[..., Any]:
    """The product that the model takes on this machine."""
    import jax

    from agent_jax.models.cpu.matmul import cpu_dot
    from agent_jax.models.matmul import dot

    return cpu_dot if jax.default_backend() == "cpu" else dot


def _jitted(function: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
    """Compiled as a train step is."""
    import jax

    from agent_jax.runtime.compiler_options import compiler_options

    return jax.jit(function, compiler_options=compiler_options(jax.devices()[0], dtype))


def _seconds(run: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
    """Of one call, the mean of as many as make the clock's resolution and the sending of a call small."""
    begun = time.perf_counter()
    wait(run())
    once = time.perf_counter() - begun
    if once > AT_LEAST_S:
        return once
    count = int(AT_LEAST_S / once) + 1
    begun = time.perf_counter()
    for _ in range(count):
        last = run()
    wait(last)
    return (time.perf_counter() - begun) / count
