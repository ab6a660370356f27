"""Smaller weights for the graphs of an exported folder, by the tools of onnxruntime.

    f32     as exported
    f16     weights and activations in float16
    int8    weights of products in int8, with a scale for each output; their activations become uint8 as they come, with
            one scale for all of an input. The tables of tokens and positions in float16
    int4    weights of products and tables in int4, with a scale for each block of `BLOCK` inputs; activations become
            int8 in the kernel

No precision needs calibration: activations are scaled as they come.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from agent_jax.convert.onnx.graphs import save

# The oldest onnxruntime that runs the graphs of each precision.
OLDEST = {"f32": "1.18", "f16": "1.18", "int8": "1.18", "int4": "1.22"}
BLOCK = 32
INT8_IN_KERNEL = 4  # MatMulNBits' accuracy_level: products of int8, sums of int32


def quantise(folder: pathlib.Path, precision: str) -> None:
    """Rewrite both graphs of a folder in a precision, a key of `OLDEST`."""
    with _quiet():
        for path in (folder / "encoder.onnx", folder / "language.onnx"):
            _quantise(path, precision)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tools' own lines; one of them sets the level of all logs as it is imported."""
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.setLevel(level)
        root.handlers[:] = handlers


def _quantise(path: pathlib.Path, precision: str) -> None:
    if precision == "f16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        save(convert_float_to_float16(onnx.load(str(path)), keep_io_types=True), path)
    elif precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # 7 bits of a weight: AVX2 adds pairs of products in 16 bits, which would overflow.
        quantize_dynamic(path, path, ["MatMul"], per_channel=True, reduce_range=True, weight_type=QuantType.QInt8,
                         use_external_data_format=True, extra_options={"MatMulConstBOnly": True})
        model = onnx.load(str(path))
        _halve_tables(model.graph)
        save(model, path)
    elif precision == "int4":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(onnx.load(str(path)), bits=4, block_size=BLOCK, is_symmetric=True,
                                         accuracy_level=INT8_IN_KERNEL, op_types_to_quantize=("MatMul", "Gather"))
        quantizer.process()
        made: Any = quantizer.model
        save(made.model, path)


def _halve_tables(graph: onnx.GraphProto) -> None:
    """Store tables that are only looked up in float16, and cast what is found."""
    others = {name for node in graph.node if node.op_type != "Gather" for name in node.input}
    tables = {tensor.name: tensor for tensor in graph.initializer
              if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2 and tensor.name not in others}
    for number, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Gather" and node.input[0] in tables:
            table = tables[node.input[0]]
            if table.data_type == onnx.TensorProto.FLOAT:
                half = onnx.numpy_helper.to_array(table).astype(np.float16)
                table.CopyFrom(onnx.numpy_helper.from_array(half, table.name))
            found, node.output[0] = node.output[0], f"{node.output[0]}_half"
            for stale in [one for one in graph.value_info if one.name == table.name]:
                graph.value_info.remove(stale)
            graph.node.insert(number + 1, onnx.helper.make_node("Cast", [node.output[0]], [found],
                                                                to=onnx.TensorProto.FLOAT))
