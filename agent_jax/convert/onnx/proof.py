"""Compares an exported folder with its checkpoint: random samples, recorded frames, episodes in the simulator.

    random samples of every domain  -> JAX, all at once   vs.  the folder with its KV cache    logits, choices, texts
    recorded frames, teacher-forced -> JAX, all at once   vs.  the folder with its history     logits, choices
    episodes of the run's simulator -> JAX acts           vs.  the folder acts, same seeds     success

In f32 the first two decide, with the tolerances of parity/tolerance.py; choices are equal wherever our two best logits
differ by more than 1e-3. In other precisions success decides: with 95% confidence, at most `margin` is lost.
"""

from __future__ import annotations

import dataclasses
import pathlib
import platform
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import onnxruntime

from agent_jax.config import Config
from agent_jax.convert.onnx.folder_policy import FolderPolicy
from agent_jax.convert.onnx.onnx_agent import Policy
from agent_jax.convert.parity.actions import ChoiceCounts, compare_actions
from agent_jax.convert.parity.rows import parity_rows
from agent_jax.convert.parity.texts import compare_texts
from agent_jax.convert.parity.tolerance import Comparison
from agent_jax.data.images import prepare_image
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.closed_loop import closed_loop
from agent_jax.evaluate.in_training import acting_domains
from agent_jax.evaluate.replay_frames import ReplayedFrames, replay_frames
from agent_jax.evaluate.statistics import paired_loss_bound, paired_summary
from agent_jax.models.agent import Agent


@dataclasses.dataclass(frozen=True)
class OnnxParity:
    """The report; `failures` is empty if the folder may be written."""

    precision: str
    comparisons: tuple[Comparison, ...]
    actions: ChoiceCounts
    texts: ChoiceCounts
    recorded: Mapping[str, Mapping[str, Any]]  # by domain
    closed_loop: Mapping[str, Mapping[str, Any]]  # by simulator
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def summary(self) -> str:
        """What was compared, a line each."""
        worst = max(self.comparisons, key=lambda row: row.difference, default=None)
        lines = [f"random samples: largest difference between logits {worst.difference:.2e}"] if worst else []
        for kind, counts in (("actions", self.actions), ("tokens of texts", self.texts)):
            lines.append(f"random samples: {counts.different} of {counts.compared} choices of {kind} differ, "
                         f"{counts.near_ties} near-ties")
        for name, found in self.recorded.items():
            lines.append(f"recorded frames of {name}: {found['different']} of {found['choices']} choices differ, "
                         f"{found['near_ties']} near-ties, accuracy {found['forward_accuracy']:.1%} -> "
                         f"{found['acting_accuracy']:.1%}")
        for name, found in self.closed_loop.items():
            lines.append(f"{name}: success {found['jax']:.1%} -> {found['onnx']:.1%} on the same {found['episodes']} "
                         f"seeds; lost {found['lost']}, gained {found['gained']}; loses at most "
                         f"{100 * found['loss_bound']:.1f} points with 95% confidence")
        return "\n".join([*lines, *(f"FAILED: {failure}" for failure in self.failures)])

    def to_dict(self) -> dict[str, Any]:
        """For parity.json."""
        versions = {module.__name__: module.__version__ for module in (jax, onnxruntime)}
        return {"passed": self.passed, "failures": list(self.failures), "precision": self.precision,
                "versions": versions, "machine": platform.machine(), "actions": self.actions.to_dict(),
                "texts": self.texts.to_dict(), "recorded": dict(self.recorded),
                "closed_loop": dict(self.closed_loop), "comparisons": [row.to_dict() for row in self.comparisons]}


def check(folder: pathlib.Path, trained: TrainedRun, precision: str, *, data: Mapping[str, str], windows: int,
          episodes: int, margin: float, log: Callable[[str], None] = print) -> OnnxParity:
    """Compare a folder with its checkpoint.

    Args:
        folder: exported, with manifest.json.
        trained: the checkpoint.
        precision: of the folder.
        data: directories of recorded data by domain; a domain without one has its run's.
        windows: of recorded frames, of each domain; 0: none.
        episodes: of each task of the run's simulators; only for other precisions than f32. 0: none, which fails.
        margin: of success that may be lost, as a share.
        log: called with a line now and then.

    Raises:
        FileNotFoundError, ValueError: the recorded data cannot be opened.
    """
    exact = dataclasses.replace(trained.config, model=dataclasses.replace(trained.config.model, dtype="float32"))
    trained = dataclasses.replace(trained, config=exact)
    with jax.default_matmul_precision("highest"):
        comparisons, actions, texts = _random_samples(folder, trained, exact)
        recorded = {name: _recorded(folder, trained, name, data.get(name, ""), windows)
                    for name, domain in trained.domains.items() if domain.spec and windows}
    failures = []
    if precision == "f32":
        failures += [f"{row.name}: {row.difference:.2e}, expected at most {row.tolerance:.2e}"
                     for row in comparisons if not row.passed]
        failures += [f"{kind}: {counts.different} of {counts.compared} choices differ"
                     for kind, counts in (("actions", actions), ("texts", texts)) if counts.different]
        failures += [f"recorded frames of {name}: {found.different} of {found.choices} choices differ, and logits by "
                     f"{found.largest_difference:.2e}" for name, found in recorded.items() if found.different]
        loops = {}
    else:
        loops = _closed_loops(folder, trained, episodes, log) if episodes else {}
        failures += [f"{name}: success {found['jax']:.1%} -> {found['onnx']:.1%}; of {found['episodes']} episodes "
                     f"{found['lost']} are lost and {found['gained']} gained, so up to "
                     f"{100 * found['loss_bound']:.1f} points may be lost (exact, 95%), expected at most "
                     f"{100 * margin:g}; a larger --episodes gives a closer bound"
                     for name, found in loops.items() if found["loss_bound"] > margin]
        tried = {found["domain"] for found in loops.values()}
        failures += [f"domain {name!r}: no episode of a simulator was compared, and success decides in {precision}"
                     for name in trained.domains if name not in tried]
    return OnnxParity(precision, tuple(comparisons), actions, texts,
                      {name: _plain(found) for name, found in recorded.items()}, loops, tuple(failures))


def _random_samples(folder: pathlib.Path, trained: TrainedRun, config: Config
                    ) -> tuple[list[Comparison], ChoiceCounts, ChoiceCounts]:
    """Logits and choices of random samples of every domain."""
    domains = trained.domains
    vocabulary = next(iter(domains.values())).vocabulary
    rows, batch = parity_rows(config.model, vocabulary, domains, visual_tokens=1 + config.model.vision.patches)
    agent = Agent(config.model)
    output: Any = jax.jit(lambda params, batch: agent.apply({"params": params}, batch, visual_tokens="all"))(
        trained.params(), batch)
    ours = np.asarray(output.logits_BTK, np.float32)
    policies = {name: Policy(folder, domain=name) for name in domains}
    actions, of_actions = compare_actions(ours, None, rows, domains, policies.__getitem__)
    texts, of_texts = compare_texts(ours, None, rows, domains, policies.__getitem__)
    found = [*of_actions, *of_texts]
    return found, actions, texts


def _recorded(folder: pathlib.Path, trained: TrainedRun, name: str, path: str, windows: int) -> ReplayedFrames:
    """The choices on recorded frames."""
    domain = trained.domains[name]
    policy: Any = FolderPolicy(folder, domain=name)
    prepare = policy.prepare

    def resized(images: Mapping[str, np.ndarray], *rest: Any) -> Any:
        # By the resize of training: Pillow's may differ by one level, which is not what is compared here.
        return prepare({camera: prepare_image(image, domain.image_size) for camera, image in images.items()}, *rest)

    policy.prepare = resized
    return replay_frames(trained, trained.params(), policy, trained.open_store(domain, path), trained.split(domain),
                         most=windows)


def _plain(found: ReplayedFrames) -> dict[str, Any]:
    names = ("windows", "choices", "different", "near_ties", "forward_accuracy", "acting_accuracy",
             "largest_difference")
    return {name: getattr(found, name) for name in names}


def _closed_loops(folder: pathlib.Path, trained: TrainedRun, episodes: int, log: Callable[[str], None]
                  ) -> dict[str, dict[str, Any]]:
    """Success of the checkpoint and of the folder on the same seeds, in every simulator of the run."""
    found = {}
    for acting in acting_domains(trained.config):
        domain = trained.domain(acting.domain)
        config = dataclasses.replace(acting.config, episodes=dict.fromkeys(acting.config.episodes, episodes))
        policies: dict[str, Any] = {"jax": trained.policy(domain.name), "onnx": Policy(folder, domain=domain.name)}
        report = closed_loop(config, policies, domain=domain, image_size=acting.image_size, baselines=False,
                             per_episode=True, log=log)
        outcomes = {name: {(task, one["seed"]): one["success"] for task in report
                           for one in report[task][name]["per_episode"]} for name in policies}
        both = sorted(outcomes["jax"].keys() & outcomes["onnx"].keys())
        before, after = (np.array([outcomes[name][key] for key in both]) for name in ("jax", "onnx"))
        found[acting.name or domain.name] = {
            "domain": domain.name, "jax": float(before.mean()), "onnx": float(after.mean()),
            **paired_summary(before, after), "loss_bound": paired_loss_bound(before, after)}
    return found
