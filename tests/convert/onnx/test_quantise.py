"""Quantised graphs compute what they did, within the precision of their weights."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent_jax.convert.onnx.graphs import save
from agent_jax.convert.onnx.quantise import quantise

WIDTH = 64


@pytest.mark.parametrize("precision", ["f16", "int8", "int4"])
def test_a_table_may_be_sliced_as_well_as_looked_up(tmp_path: Path, precision: str):
    # As the encoder's position table: one row is looked up, the rest is sliced.
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((size, WIDTH)).astype(np.float32)
               for name, size in (("only_looked_up", 40), ("both", 40), ("kernel", WIDTH))}
    nodes = [helper.make_node("Gather", ["only_looked_up", "ids"], ["found"]),
             helper.make_node("Gather", ["both", "ids"], ["also_found"]),
             helper.make_node("Slice", ["both", "first", "last"], ["sliced"]),
             helper.make_node("Add", ["found", "also_found"], ["sum"]),
             helper.make_node("MatMul", ["sum", "kernel"], ["product"])]
    model = helper.make_model(helper.make_graph(
        nodes, "tables", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["A"])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["A", WIDTH]),
         helper.make_tensor_value_info("sliced", TensorProto.FLOAT, [39, WIDTH])],
        [*(numpy_helper.from_array(array, name) for name, array in weights.items()),
         numpy_helper.from_array(np.array([1]), "first"), numpy_helper.from_array(np.array([40]), "last")]),
        opset_imports=[helper.make_opsetid("", 21)])
    for name in ("encoder.onnx", "language.onnx"):
        save(copy.deepcopy(model), tmp_path / name)  # saving moves the weights
    quantise(tmp_path, precision)
    ids = np.array([0, 3, 39])
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    product, sliced = session.run(None, {"ids": ids})
    expected = (weights["only_looked_up"][ids] + weights["both"][ids]) @ weights["kernel"]
    least = {"f16": 0.99999, "int8": 0.999, "int4": 0.98}[precision]
    assert np.corrcoef(product.ravel(), expected.ravel())[0, 1] > least
    np.testing.assert_allclose(sliced, weights["both"][1:], atol=2e-3 if precision == "f16" else 0)
    if precision == "int8":
        kept = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "encoder.onnx").graph.initializer}
        assert (kept["only_looked_up"], kept["both"]) == (TensorProto.FLOAT16, TensorProto.FLOAT)
