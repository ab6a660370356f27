"""What `config.init.checkpoint` names: a run, an exported PyTorch folder, or one on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from etils import epath

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.exported.folder import read_meta, read_params
from agent_jax.checkpoints.fingerprint import flat, nested
from agent_jax.checkpoints.meta import ACTING, PARAMS, is_averaged
from agent_jax.config import InitConfig, from_config_dict
from agent_jax.convert.grow.plan import AgentDescription
from agent_jax.convert.huggingface.architecture import model_kind
from agent_jax.hub import located_agent
from agent_jax.json_files import read_json_object
from agent_jax.models.agent import Params

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained agent to take parameters from."""

    name: str  # for the log: the step's directory or the folder, and which parameters
    agent: AgentDescription
    read: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Params]  # all parameters, each where its sharding says


def with_source(init: InitConfig, use: Callable[[Source], T]) -> tuple[T, tuple[int, ...]]:
    """What `use` returns of the agent that `init.checkpoint` names.

    Args:
        init: of the config.
        use: is called with an exported folder, the step that is named, or the newest undamaged step.

    Returns:
        (what it returned, the damaged newer steps).

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DamagedCheckpointError: the step is damaged, or every one.
        ValueError: the path names a CLIP or OPT; or as `use`.
    """
    path = located_checkpoint(init.checkpoint)
    if (path / "agent.json").exists():
        return use(_exported(pathlib.Path(path))), ()
    directory, named = checkpoint.locate(path)

    def use_step(step: int) -> T:
        return use(_step(directory, step, init))

    if named is not None:
        return use_step(named), ()
    result, damaged = checkpoint.newest_undamaged(directory, use_step)
    return result, tuple(damaged)


def located_checkpoint(path: str) -> epath.Path:
    """The local path or bucket of `init.checkpoint`; a name of the hub is downloaded, unless the cache has it.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is a CLIP or OPT.
    """
    place = epath.Path(located_agent(path)).expanduser()
    _refuse_weights(place)
    return place


def _refuse_weights(place: epath.Path) -> None:
    """Raise ValueError for the folder of a CLIP or OPT, which `init.pretrained` converts."""
    if "://" in str(place) or not (config := pathlib.Path(place) / "config.json").is_file():
        return
    if part := model_kind(read_json_object(config)):
        raise ValueError(f"config.init.checkpoint={place}: found Hugging Face {part} weights, expected a run or an "
                         f"exported agent; pass --config.init.pretrained.{part}={place}")


def _step(directory: Any, step: int, init: InitConfig) -> Source:
    meta = checkpoint.read_meta(directory, step)
    averaged = init.weights == "averaged"
    which = "" if not averaged else ", averaged parameters" if is_averaged(meta) else ", which keeps no average"
    model = from_config_dict(meta["config"]).model

    def read(abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        return checkpoint.restore_parameters(directory, nested(abstract), step=step,
                                             subtree=ACTING if averaged else PARAMS)[0]

    return Source(f"{directory / str(step)}{which}",
                  AgentDescription(model, Vocabulary.from_json(meta["vocabulary"])), read)


def _exported(folder: pathlib.Path) -> Source:
    """A folder of `convert to-pytorch` or torch_agent.Agent.save."""
    meta, step = read_meta(folder)
    model = from_config_dict(meta["config"]).model

    def read(abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        leaves = flat(read_params(folder, model))
        return nested({path: jax.device_put(leaves[path], leaf.sharding) for path, leaf in abstract.items()})

    return Source(f"{folder}, exported at step {step}",
                  AgentDescription(model, Vocabulary.from_json(meta["vocabulary"])), read)
