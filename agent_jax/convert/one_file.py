"""Writes an exported agent as one Python file: its module, below all those of this package that it imports."""

from __future__ import annotations

import ast
import inspect
import sys
from types import ModuleType

FOLDERS = ("agent_jax.convert.exported", "agent_jax.convert.pytorch", "agent_jax.convert.onnx")


def one_file(module: ModuleType) -> str:
    """The source of a module of `FOLDERS` that imports nothing of this package but other modules of them."""
    imports: dict[str, set[str]] = {}  # the names imported from each module; "": whole modules
    bodies: dict[str, str] = {}  # by module, an imported one before those that import it

    def add(name: str) -> str:
        """Add a module after those that it imports; returns its docstring as written."""
        assert name.rpartition(".")[0] in FOLDERS, f"{module.__name__} becomes one file, so it cannot import {name}"
        source = inspect.getsource(sys.modules[name])
        docstring, *statements = ast.parse(source).body
        end = docstring.end_lineno
        for node in statements:
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("agent_jax."):
                if node.module not in bodies:
                    add(node.module)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                imports.setdefault(getattr(node, "module", ""), set()).update(map(ast.unparse, node.names))
            else:
                continue
            end = node.end_lineno
        lines = source.splitlines()
        bodies[name] = "\n".join(lines[end:]).strip("\n")
        return "\n".join(lines[: docstring.end_lineno])

    docstring = add(module.__name__)
    future = f"from __future__ import {imports.pop('__future__').pop()}"
    whole = [f"import {name}" for name in sorted(imports.pop(""))]
    ours, others = [], []
    for line in [*whole, *(f"from {name} import {', '.join(sorted(imports[name]))}" for name in sorted(imports))]:
        (ours if line.split()[1].partition(".")[0] in sys.stdlib_module_names else others).append(line)
    head = "\n\n".join([docstring, future, "\n".join(ours), "\n".join(others)])
    return "\n\n\n".join([head, *bodies.values()]) + "\n"
