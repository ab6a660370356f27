"""Uploads an agent to the Hugging Face hub: the folder of `to-pytorch`, with a model card made from its run."""

from __future__ import annotations

import pathlib
import tempfile

from agent_jax.checkpoints.exported.folder import DESCRIPTION, read_folder
from agent_jax.hub import check_may_push, push_agent


def push(path: str | pathlib.Path, name: str, *, public: bool = False, dtype: str = "float32",
         weights: str = "averaged") -> str:
    """Export a checkpoint and upload the folder as one commit; `Policy.from_pretrained(name)` loads it.

    Args:
        path: a workdir, its checkpoints directory, or one step in it; or an exported folder, which is checked and
            uploaded as it is.
        name: ORG/NAME of the repository, created if it does not exist.
        public: whether everybody may read it. A repository that exists must be as this says.
        dtype: of the stored tensors, as in `to_pytorch.export`.
        weights: as in `to_pytorch.export`.

    Returns:
        The address of the commit.

    Raises:
        ValueError: a wrong name, no token, or the hub refuses or does not answer.
        FileNotFoundError, DamagedCheckpointError, ParityError: as `to_pytorch.export`; nothing is uploaded.
    """
    check_may_push(name, public=public)
    folder = pathlib.Path(path).expanduser()
    if "://" not in str(path) and (folder / DESCRIPTION).is_file():
        _, _, step = read_folder(folder)
        return push_agent(folder, name, public=public, message=f"Step {step:,}")
    from agent_jax.convert.to_pytorch import export

    with tempfile.TemporaryDirectory(prefix="agent_jax-push-") as place:
        folder = pathlib.Path(place) / name.partition("/")[2]
        export(path, folder, dtype=dtype, weights=weights, name=name)
        return push(folder, name, public=public)
