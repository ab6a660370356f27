"""A run on Weights & Biases, if `config.log.wandb` names a project. What fails there is logged once; training goes on.

WORKDIR/wandb_id names the W&B run, so that a resumed run continues it. WANDB_MODE=offline keeps everything on disk, in
WORKDIR/wandb, for `wandb sync`.
"""

from __future__ import annotations

import dataclasses
import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from absl import logging
from etils import epath

from agent_jax.config import Config

ID_FILE = "wandb_id"
_WAIT_S = 30.0  # for a login or an answer of the service, at the start


class WandbRun:
    """Scalars by tag and step; a context manager, which ends the run there as failed if it is left by an error."""

    def __init__(self, config: Config, workdir: epath.Path, directory: Path):
        """Begin or continue the W&B run; does nothing if no project is named.

        Args:
            config: of the run.
            workdir: names the run, and holds its id.
            directory: local, for W&B's files.
        """
        self._run: Any = None
        self._failed = False
        if not config.log.wandb:
            return
        try:
            wandb: Any = importlib.import_module("wandb")

            file = workdir / ID_FILE
            if not file.exists():
                workdir.mkdir(parents=True, exist_ok=True)
                file.write_text(uuid.uuid4().hex)
            entity, _, project = config.log.wandb.rpartition("/")
            self._run = wandb.init(
                entity=entity or None, project=project, id=file.read_text().strip(), resume="allow",
                name=workdir.name, dir=directory, config=dataclasses.asdict(config),
                settings=wandb.Settings(console="off", silent=True, init_timeout=_WAIT_S, login_timeout=_WAIT_S))
            self._run.define_metric("*", step_metric="step")  # steps after the last checkpoint are logged again
        except Exception as error:  # noqa: BLE001 - a service that fails is less than the run
            self._warn(error)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Log scalars by tag, of a step."""
        if self._run is not None:
            try:
                self._run.log({**scalars, "step": step})
            except Exception as error:  # noqa: BLE001 - as above
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._failed:
            logging.warning("config.log.wandb: Weights & Biases failed, and the training goes on without it (%s: %s); "
                            "metrics.jsonl has everything", type(error).__name__, " ".join(str(error).split())[:300])
        self._failed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._run is not None:
            try:
                self._run.finish(exit_code=int(kind is not None))
            except Exception as error:  # noqa: BLE001 - as above
                self._warn(error)
