"""Floating-point operations of a JAX function, counted on its jaxpr: every layer of a scan, every microbatch.

    jaxpr -> [matmul 2 x 768 x 768 ..., times 12] [...]

The compiler's own count (`compiled.cost_analysis()`) takes the body of a loop once. Here it counts for every iteration,
and so does what the backward pass recomputes. A `shard_map` counts on all devices of its manual axes, a `cond` as its
most expensive branch, a Pallas kernel with the blocks that a mask lets it skip. Unused results are left out, as a
compiler does. The count is of the whole program, over all devices; a multiplication and an addition are two operations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.interpreters import partial_eval

from agent_jax.models.attention_kernels import cudnn_flops

RECOMPUTED = "rematted_computation"  # in the scope of what jax.checkpoint recomputes
MATMUL, CONVOLUTION, KERNEL, ELEMENTWISE = "matmul", "convolution", "kernel", "elementwise"

# One operation an element of the result; reductions and scans along an axis: one an element of the operand.
_ELEMENTWISE = frozenset((
    "abs", "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "clamp", "cos",
    "cosh", "digamma", "div", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "integer_pow", "lgamma", "log",
    "log1p", "logistic", "max", "min", "mul", "neg", "nextafter", "pow", "rem", "round", "rsqrt", "sign", "sin", "sinh",
    "sqrt", "square", "sub", "tan", "tanh",
))
_REDUCTIONS = frozenset((
    "argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "reduce_max", "reduce_min",
    "reduce_prod", "reduce_sum",
))


@dataclasses.dataclass(frozen=True)
class Operation:
    """One equation of a jaxpr, as often as the program runs it."""

    primitive: str
    group: str  # matmul, convolution, kernel or elementwise
    scope: str  # where it was traced, e.g. "transpose(jvp(Agent))/vision/blocks/mlp/up"
    shapes: tuple[tuple[int, ...], ...]  # of its operands, on one device inside a shard_map
    dtypes: tuple[str, ...]  # of its operands
    dtype: str  # of its result
    times: int
    flops: int  # of all times, over all devices
    axes: Any = None  # of a matrix product: `dimension_numbers` of jax.lax.dot_general


def operations(jaxpr: Any, *, elementwise: bool = False) -> list[Operation]:
    """The floating-point operations of a jaxpr.

    Args:
        jaxpr: a `Jaxpr` or `ClosedJaxpr`, e.g. `jitted.trace(*arguments).jaxpr`.
        elementwise: include elementwise operations: one an element, a transcendental function like an addition.

    Raises:
        ValueError: a loop of unknown length holds matrix products, or a kernel has neither a fixed grid nor a cost
            estimate.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    found = _walk(live, 1, "")
    return [operation for operation in found if elementwise or operation.group != ELEMENTWISE]


def total_flops(found: Iterable[Operation]) -> int:
    """Their sum."""
    return sum(operation.flops for operation in found)


def model_and_recomputed(found: list[Operation]) -> tuple[int, int]:
    """Operations of the model, and those that `jax.checkpoint` recomputes for the backward pass."""
    recomputed = sum(operation.flops for operation in found if RECOMPUTED in operation.scope)
    return total_flops(found) - recomputed, recomputed


def _walk(jaxpr: Any, times: int, scope: str) -> Iterator[Operation]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        own = str(equation.source_info.name_stack)
        where = "/".join(part for part in (scope, own) if part)
        if name == "pallas_call":
            yield _operation(equation, KERNEL, where, times, _kernel_flops(equation))
        elif name == "cond":
            branches = [list(_walk(branch.jaxpr, times, where)) for branch in equation.params["branches"]]
            # The last of equals is the default of a `jax.lax.platform_dependent`.
            yield from max(reversed(branches), key=total_flops)
        elif name == "while":
            body = list(_walk(equation.params["body_jaxpr"].jaxpr, times, where))
            heavy = next((operation for operation in body if operation.group != ELEMENTWISE), None)
            if heavy is not None:
                raise ValueError(f"{where or 'the function'}: found a while loop, whose length is not known before it "
                                 f"runs, around a {heavy.primitive}; expected a scan or a fori_loop of fixed bounds")
            yield from body
        elif (cudnn := cudnn_flops(name, [variable.aval.shape for variable in equation.invars])) is not None:
            yield _operation(equation, KERNEL, where, times, cudnn)
        elif inner := _inner(equation):
            for each in inner:
                yield from _walk(each, times * _repeats(equation), where)
        elif name == "dot_general":
            yield _operation(equation, MATMUL, where, times, _dot_flops(equation))
        elif name == "conv_general_dilated":
            yield _operation(equation, CONVOLUTION, where, times, _convolution_flops(equation))
        elif name in _ELEMENTWISE and _floating(equation.outvars[0]):
            yield _operation(equation, ELEMENTWISE, where, times, _size(equation.outvars[0]))
        elif name in _REDUCTIONS and _floating(equation.invars[0]):
            yield _operation(equation, ELEMENTWISE, where, times, _size(equation.invars[0]))


def _inner(equation: Any) -> list[Any]:
    """The jaxprs that an equation runs: of a call, a scan, a rematerialised block; not the rules of derivatives."""
    jaxprs = (getattr(value, "jaxpr", value) for value in equation.params.values())
    return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, "eqns")]


def _operation(equation: Any, group: str, scope: str, times: int, flops: int) -> Operation:
    shapes = tuple(tuple(variable.aval.shape) for variable in equation.invars)
    dtypes = tuple(str(getattr(variable.aval, "dtype", "")) for variable in equation.invars)
    dtype = str(equation.outvars[0].aval.dtype)
    return Operation(equation.primitive.name, group, scope, shapes, dtypes, dtype, times, times * flops,
                     equation.params["dimension_numbers"] if group == MATMUL else None)


def _dot_flops(equation: Any) -> int:
    """2 x elements of the result x contracted elements."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)


def _convolution_flops(equation: Any) -> int:
    """2 x elements of the result x elements of the kernel for each (borders count in full)."""
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * _size(equation.outvars[0]) * math.prod(kernel) // out_features


def _kernel_flops(equation: Any) -> int:
    """The cost estimate of a Pallas kernel; without one, its body for each point of its grid."""
    estimate = equation.params.get("cost_estimate")
    if estimate is not None:
        return int(estimate.flops)
    grid = equation.params["grid_mapping"].grid
    if not all(isinstance(size, int) for size in grid):
        raise ValueError(f"Pallas kernel {equation.params.get('name', '')!r}: found grid {grid}, expected fixed sizes "
                         "or a cost_estimate")
    return math.prod(grid) * total_flops(_walk(equation.params["jaxpr"], 1, ""))


def _repeats(equation: Any) -> int:
    """How often the body runs: the length of a scan, or the devices of a shard_map."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name != "shard_map":
        return 1
    mesh = equation.params["mesh"]
    manual = equation.params.get("manual_axes") or mesh.axis_names
    return math.prod(mesh.shape[axis] for axis in manual)


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _floating(variable: Any) -> bool:
    return jax.numpy.issubdtype(variable.aval.dtype, jax.numpy.inexact)
