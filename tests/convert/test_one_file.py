"""An exported agent as one file."""

from __future__ import annotations

import ast
from types import ModuleType

import pytest

from agent_jax.convert.one_file import one_file
from agent_jax.convert.onnx import onnx_agent
from agent_jax.convert.pytorch import torch_agent


@pytest.mark.parametrize("module", [torch_agent, onnx_agent])
def test_the_modules_of_one_file_define_no_name_twice(module: ModuleType) -> None:
    tree = ast.parse(one_file(module))
    names = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    assert {"Codec", "Domain", "Policy", "main"} < set(names)
    assert len(names) == len(set(names)), names
