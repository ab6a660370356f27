"""Smaller weights for the graphs of an exported folder, by the tools of onnxruntime.

    f32     as exported
    f16     weights and activations in float16
    int8    weights of products in int8, with a scale for each block of `BLOCK` inputs; their activations become int8
            in the kernel. The tables of tokens and positions in float16: the tool has no int8 lookup
    int4    weights of products and tables in int4, likewise

No precision needs calibration: activations are scaled as they come, row by row.
"""

from __future__ import annotations

import pathlib

import numpy as np
import onnx

from agent_jax.convert.onnx.graphs import save

# The oldest onnxruntime that runs the graphs of each precision.
OLDEST = {"f32": "1.18", "f16": "1.18", "int8": "1.23", "int4": "1.22"}
BLOCK = 32
INT8_IN_KERNEL = 4  # MatMulNBits' accuracy_level: products of int8, sums of int32


def quantise(folder: pathlib.Path, precision: str) -> None:
    """Rewrite both graphs of a folder in a precision, a key of `OLDEST`."""
    for path in (folder / "encoder.onnx", folder / "language.onnx"):
        if precision == "f16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            save(convert_float_to_float16(onnx.load(str(path)), keep_io_types=True), path)
        elif precision != "f32":
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            model, bits = onnx.load(str(path)), int(precision.removeprefix("int"))
            if bits == 8:
                _halve_tables(model.graph)
            operators = ("MatMul", "Gather") if bits == 4 else ("MatMul",)
            quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=BLOCK, is_symmetric=True,
                                             accuracy_level=INT8_IN_KERNEL, op_types_to_quantize=operators)
            quantizer.process()
            save(quantizer.model.model, path)


def _halve_tables(graph: onnx.GraphProto) -> None:
    """Store tables that are looked up in float16, and cast what is found."""
    tables = {tensor.name: tensor for tensor in graph.initializer
              if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2}
    for number, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Gather" and node.input[0] in tables:
            table = tables[node.input[0]]
            if table.data_type == onnx.TensorProto.FLOAT:
                half = onnx.numpy_helper.to_array(table).astype(np.float16)
                table.CopyFrom(onnx.numpy_helper.from_array(half, table.name))
            found, node.output[0] = node.output[0], f"{node.output[0]}_half"
            graph.node.insert(number + 1, onnx.helper.make_node("Cast", [node.output[0]], [found],
                                                                to=onnx.TensorProto.FLOAT))
