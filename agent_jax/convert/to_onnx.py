"""Exports a checkpoint as a folder for onnxruntime, after a proof that it acts the same.

checkpoint -> .OUT.partial/ { encoder.onnx language.onnx agent.json ... } -> parity.json -> OUT

encoder.onnx  language.onnx  (and their .data)   the graphs, in the precision asked for
agent.json  vocabulary.json  language/tokenizer.json       as in a folder for PyTorch
onnx_agent.py                                    acts and answers with onnxruntime and NumPy alone
manifest.json                                    hashes of these files, which are checked when they are loaded
parity.json  README.md                           the proof, and how to use the folder
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

import agent_jax
from agent_jax.checkpoints.exported.tensors import in_module, to_tensors
from agent_jax.config import Config
from agent_jax.convert import model_card
from agent_jax.convert.from_huggingface import checked_out, renamed_when_complete
from agent_jax.convert.one_file import one_file
from agent_jax.convert.onnx import onnx_agent
from agent_jax.convert.onnx.graphs import OPSET, write_graphs
from agent_jax.convert.onnx.proof import OnnxParity, check
from agent_jax.convert.onnx.quantise import OLDEST, quantise
from agent_jax.convert.parity.tolerance import ParityError
from agent_jax.convert.pytorch import folder as torch_folder
from agent_jax.convert.pytorch import torch_agent
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.help_pages import help_page
from agent_jax.models.agent import Params

WINDOWS, EPISODES, MARGIN = 64, 400, 0.02


def export(path: str | pathlib.Path, out: str | pathlib.Path, *, precision: str = "f32",
           data: Mapping[str, str] | None = None, windows: int = WINDOWS, episodes: int = EPISODES,
           margin: float = MARGIN, allow_loss: bool = False, log: Callable[[str], None] = print) -> OnnxParity:
    """Write the folder of a checkpoint.

    Args:
        path: a workdir, its checkpoints directory, or one step in it; of several steps the newest undamaged one.
        out: the folder to write.
        precision: of the weights, a key of `OLDEST`.
        data: directories of recorded data by domain; a domain without one has its run's.
        windows: of recorded frames that are compared, of each domain; 0: none.
        episodes: of each task of the run's simulators, in other precisions than f32.
        margin: of success that may be lost there, as a share.
        allow_loss: write the folder although the proof failed; parity.json says what failed.
        log: called with a line now and then.

    Returns:
        The report.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError, DamagedCheckpointError: there is no undamaged checkpoint, or no data.
        ValueError: an unknown precision, a run without domains, or NaN or infinite parameters.
        ParityError: the proof failed; nothing is written.
    """
    out = checked_out(out)
    if precision not in OLDEST:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(OLDEST)}")
    trained = TrainedRun.load(path)
    if not trained.domains:
        raise ValueError(f"{trained.directory}: the run has no domain, so there is nothing to act or answer in")
    config = trained.config
    source = {"checkpoint": str(trained.directory), "step": trained.step,
              "damaged_steps_passed_over": list(trained.passed_over), "weights": "averaged", "dtype": precision,
              "agent_jax": agent_jax.__version__}
    vocabulary = next(iter(trained.domains.values())).vocabulary
    with renamed_when_complete(out) as partial:
        (partial / "language").mkdir(parents=True)
        described = torch_folder.agent_json(config, trained.domains, source)
        write_graphs(in_pytorch(trained.params(), config, json.loads(described)), partial)
        quantise(partial, precision)
        (partial / "agent.json").write_text(described, encoding="utf-8")
        (partial / "vocabulary.json").write_text(json.dumps(vocabulary.to_json(), indent=1) + "\n", encoding="utf-8")
        (partial / "language" / "tokenizer.json").write_text(torch_folder.tokenizer_json(vocabulary.text),
                                                             encoding="utf-8")
        (partial / "onnx_agent.py").write_text(one_file(onnx_agent), encoding="utf-8")
        files = {str(file.relative_to(partial)): onnx_agent.file_hash(file)
                 for file in sorted(partial.glob("**/*")) if file.is_file()}
        manifest = {"format": onnx_agent.FORMAT, "precision": precision, "opset": OPSET,
                    "onnxruntime": OLDEST[precision], "files": files}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        parity = check(partial, trained, precision, data=data or {}, windows=windows, episodes=episodes,
                       margin=margin, log=log)
        if not parity.passed and not allow_loss:
            failed = "\n".join(f"  {failure}" for failure in parity.failures)
            raise ParityError(f"{out} was not written: in {precision} it does not act as the checkpoint does "
                              f"(--allow_loss writes it all the same){help_page('guides/edge.md', 'The proof')}\n"
                              f"{failed}")
        (partial / "parity.json").write_text(json.dumps({"source": source, **parity.to_dict()}, indent=1) + "\n")
        (partial / "README.md").write_text(model_card.onnx_text(out.name, source, manifest, trained.domains,
                                                                parity.summary()))
    return parity


def in_pytorch(params: Params, config: Config, description: dict[str, Any]) -> torch_agent.Agent:
    """Parameters as the PyTorch module, in f32.

    Args:
        params: of the whole agent.
        config: of the run.
        description: the content of agent.json.

    Raises:
        ValueError: NaN or infinite parameters.
    """
    tensors = in_module(dict(to_tensors(params, config.model)))
    if bad := sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor).all()):
        raise ValueError(f"{bad[0]} and {len(bad) - 1} more tensors have NaN or infinite values; export a step before "
                         "the run diverged, by the path of its directory")
    with torch.device("meta"):
        agent = torch_agent.Agent(description)
    agent.load_state_dict({name: torch.from_numpy(np.array(tensor, np.float32)) for name, tensor in tensors.items()},
                          assign=True)
    return agent.eval().requires_grad_(False)
