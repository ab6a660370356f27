"""Restoring a step, or an exported folder, to act, evaluate or export with: its parameters, without the optimizer."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
from absl import logging

from agent_jax.bundled import bundled_agent
from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.exported.folder import DESCRIPTION, read_meta, read_params
from agent_jax.checkpoints.meta import ACTING
from agent_jax.config import Config, from_config_dict
from agent_jax.models.agent import Params, abstract_params


@dataclasses.dataclass(frozen=True)
class StepTaken:
    """Which step of a run something acts by."""

    directory: Any  # of the checkpoints, or the exported folder
    step: int
    passed_over: tuple[int, ...] = ()  # damaged newer steps, the newest first


@dataclasses.dataclass(frozen=True)
class ActingCheckpoint:
    """A step to act, evaluate or export with."""

    taken: StepTaken
    meta: dict[str, Any]
    config: Config
    params: Params


def load_to_act(path: Any, step: int | None = None, *, averaged: bool = True) -> ActingCheckpoint:
    """The newest undamaged step; damaged newer ones are passed over, which one line of the log says.

    Args:
        path: a workdir, its checkpoints directory, one step in it, a folder of `convert to-pytorch`, or the name of an
            agent that comes with the package.
        step: this one and no other; by default the one that `path` names, if it names one.
        averaged: the averaged parameters where the run kept some, or else the last ones. A folder has those it was
            exported with.

    Raises:
        FileNotFoundError: no checkpoint there.
        DamagedCheckpointError: the step is damaged, or every one.
        OSError, ValueError: as `checkpoint.restore_parameters`; or as `exported.folder.read_folder`.
    """
    path = bundled_agent(path)
    if "://" not in str(path) and (pathlib.Path(path).expanduser() / DESCRIPTION).is_file():
        return _load_exported(pathlib.Path(path).expanduser(), step)
    directory, named = checkpoint.locate(path)
    step = named if step is None else step

    def read(step: int) -> ActingCheckpoint:
        meta = checkpoint.read_meta(directory, step)
        config = from_config_dict(meta["config"])
        if averaged:
            params = restore_acting_parameters(directory, config, step)
        else:
            params, _ = checkpoint.restore_parameters(directory, abstract_params(config.model), step=step)
        return ActingCheckpoint(StepTaken(directory, step), meta, config, params)

    if step is not None:
        return read(step)
    found, passed_over = checkpoint.newest_undamaged(directory, read)
    if not passed_over:
        return found
    reasons = "; ".join(" ".join(reason.split()) for reason in passed_over.values())
    logging.warning("Step %d of %s is taken. Passed over as damaged: %s", found.taken.step, directory, reasons)
    return dataclasses.replace(found, taken=dataclasses.replace(found.taken, passed_over=tuple(passed_over)))


def _load_exported(folder: pathlib.Path, step: int | None) -> ActingCheckpoint:
    meta, exported = read_meta(folder)
    if step not in (None, exported):
        raise ValueError(f"step={step}: {folder} was exported at step {exported}; leave the step out")
    config = from_config_dict(meta["config"])
    params = jax.tree.map(jax.numpy.asarray, read_params(folder, config.model))
    return ActingCheckpoint(StepTaken(folder, exported), meta, config, params)


def restore_acting_parameters(directory: Any, config: Config, step: int | None = None) -> Params:
    """The parameters of a checkpoint to evaluate, act or export with: the averaged ones where the run kept some.

    Raises:
        FileNotFoundError, DamagedCheckpointError, ValueError: as `checkpoint.restore_parameters`.
    """
    return checkpoint.restore_parameters(directory, abstract_params(config.model), step=step, subtree=ACTING)[0]
