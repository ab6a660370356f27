"""Makes a checkpoint from an exported folder, trained further in PyTorch or not: the inverse of to_pytorch.py."""

from __future__ import annotations

import pathlib

from agent_jax.checkpoints.exported.folder import read_folder
from agent_jax.convert.from_huggingface import checked_out, write_step


def import_folder(folder: str | pathlib.Path, out: str | pathlib.Path) -> str:
    """Write the checkpoint of an exported folder, with the step number of the export.

    Args:
        folder: written by `to_pytorch.export` or torch_agent.Agent.save.
        out: the directory to write; `Policy.load` and config.init.checkpoint read it.

    Returns:
        A line to print.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: a file is missing.
        ValueError: tensors are missing, unknown, of another shape or not finite, or files disagree.
    """
    out, folder = checked_out(out), pathlib.Path(folder).expanduser()
    leaves, meta, step = read_folder(folder)
    write_step(out, leaves, meta, step=step)
    return f"{sum(leaf.size for leaf in leaves.values()):,} values of {folder} -> {out}/{step}"
