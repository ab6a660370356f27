"""Writes an exported agent as one Python file: its module, with `exported_policy` in the place of its import."""

from __future__ import annotations

import pathlib
import re
from types import ModuleType

from agent_jax.convert import exported_policy

_IMPORT = re.compile(r"^from agent_jax\.convert\.exported_policy import (?:\([^)]*\)|.*)\n", re.MULTILINE)


def one_file(module: ModuleType) -> str:
    """The source of a module that imports nothing of this package but names of `exported_policy`."""
    source, shared = (pathlib.Path(str(one.__file__)).read_text(encoding="utf-8") for one in (module, exported_policy))
    _, future, shared = shared.partition("from __future__ import annotations\n")
    assert future
    found, count = _IMPORT.subn(lambda _: shared.strip("\n") + "\n\n", source)
    assert count == 1
    assert not re.search(r"^(?:from|import) agent_jax", found, re.MULTILINE)
    return found
