"""Parity check of an exported folder: the same rows through JAX and through PyTorch.

    rows of random samples --> our Agent         --> hidden states, logits, reconstructed patches, losses, gradients
                           --> torch_agent.Agent --> the same                                     --> Comparison ...

In f32 the tolerances are those of tolerance.py; gradients are relative to the norm of their layer's gradient. In bf16
PyTorch may differ from ours by three times the difference between ours and f32. actions.py compares action choices,
texts.py the tokens of answers.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import math
import pathlib
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.batch import Batch
from agent_jax.checkpoints.exported.tensors import in_module, to_tensors
from agent_jax.config import Config, ModelConfig
from agent_jax.convert.parity.actions import ChoiceCounts, compare_actions
from agent_jax.convert.parity.huggingface import verify_language, verify_vision
from agent_jax.convert.parity.rows import parity_rows
from agent_jax.convert.parity.texts import compare_texts
from agent_jax.convert.parity.tolerance import BLOCK, STACK, Comparison, compare
from agent_jax.convert.pytorch import torch_agent
from agent_jax.data.pipeline.domains import Domain
from agent_jax.models.agent import Agent, AgentOutput, Params, training_visual_tokens
from agent_jax.models.losses import loss_sums, loss_weights, means, total
from agent_jax.models.mae import PatchMask, random_mask
from agent_jax.models.vision import patchify
from agent_jax.runtime.host_memory import release_freed_memory

# Relative to a layer's norm: f32 rounding through 24 blocks gives up to 1.8e-4, a wrong term 1e-1 and more. In f64 the
# two agree to 1e-9 (tests/convert/pytorch/test_torch_agent.py).
GRADIENT = 1e-3
BF16_FACTOR = 3.0
FIXED_POSITIONS = "vision.embeddings.position_embedding.weight"  # a stored table that is not a parameter


@dataclasses.dataclass(frozen=True)
class Parity:
    """The parity report."""

    comparisons: Sequence[Comparison]
    actions: ChoiceCounts
    texts: ChoiceCounts
    rows: Mapping[str, int]  # sizes of the inputs

    @property
    def passed(self) -> bool:
        """Whether all comparisons are within their tolerance and no action or text differs."""
        return all(row.passed for row in self.comparisons) and not self.actions.different + self.texts.different

    def failures(self) -> str:
        """The comparisons beyond their tolerance, as lines."""
        lines = [f"  {row.name}: {row.difference:.2e}, expected at most {row.tolerance:.2e}"
                 for row in self.comparisons if not row.passed]
        lines += [f"  {kind}: {counts.different} of {counts.compared} differ"
                  for kind, counts in (("actions", self.actions), ("texts", self.texts)) if counts.different]
        return "\n".join(lines)

    def groups(self) -> dict[str, Comparison]:
        """The worst comparison of each kind, relative to its tolerance."""
        worst: dict[str, Comparison] = {}
        for row in self.comparisons:
            kind = row.name.split(":")[0]
            # `not <=` so that NaN is the worst.
            if kind not in worst or not row.difference / row.tolerance <= (
                    worst[kind].difference / worst[kind].tolerance):
                worst[kind] = row
        return worst

    def summary(self) -> str:
        """A table of the worst comparison of each kind."""
        lines = [f"{kind:<22} {sum(row.name.split(':')[0] == kind for row in self.comparisons):>4} compared, worst "
                 f"{row.difference:.2e} of {row.tolerance:.2e} allowed  {'ok' if row.passed else 'FAILED'}"
                 for kind, row in self.groups().items()]
        lines += [f"{kind:<22} {counts.compared:>4} compared, {counts.different} differ, "
                  f"{counts.near_ties} near-ties  {'FAILED' if counts.different else 'ok'}"
                  for kind, counts in (("actions", self.actions), ("tokens of texts", self.texts))]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For parity.json."""
        versions = {module.__name__: module.__version__ for module in (jax, torch, transformers)}
        return {"passed": self.passed, "versions": versions, "machine": platform.machine(), "rows": dict(self.rows),
                "actions": self.actions.to_dict(), "texts": self.texts.to_dict(),
                "comparisons": [row.to_dict() for row in self.comparisons]}


def check_parity(folder: pathlib.Path, params: Params, config: Config, vocabulary: Vocabulary,
                 domains: Mapping[str, Domain]) -> Parity:
    """Compare an exported folder with its parameters.

    Args:
        folder: of `to_pytorch`, complete except for parity.json and README.md.
        params: as stored there; emptied here, to free memory for PyTorch's.
        config: of the run.
        vocabulary: of the run.
        domains: of the run; may be empty.
    """
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32", remat="dots"))
    rows, batch = parity_rows(config.model, vocabulary, domains, visual_tokens=1 + config.model.vision.patches)
    keys_B, mask = _masked(config.model, batch)
    model = dataclasses.replace(config.model, visual_tokens="visible")
    _, visible = parity_rows(model, vocabulary, domains, visual_tokens=training_visual_tokens(model))

    with jax.default_matmul_precision("highest"):
        ours = _ours(params, config, batch, keys_B, max(1, len(domains)))
        exact = _outputs_of_visible(Agent(model), params, visible)
    rounded = _outputs_of_visible(Agent(dataclasses.replace(model, dtype="bfloat16")), params, visible)
    params.clear()
    release_freed_memory()

    agent = torch_agent.Agent.load(folder)
    comparisons, logits_BTK = _compared(ours, agent, config, batch, mask)
    visible_mask = as_mask(_masked(model, visible)[1])
    with torch.inference_mode():
        logits = agent(as_torch(visible), visible_mask, "visible").logits_BTK
        comparisons.append(compare("logits: of visible patches", logits, _real(exact.logits_BTK, logits), STACK))
        with torch.autocast("cpu", torch.bfloat16):
            found = agent(as_torch(visible), visible_mask, "visible")
    comparisons += [_compare_bf16("logits", rounded.logits_BTK, found.logits_BTK, exact.logits_BTK),
                    _compare_bf16("reconstructed patches", rounded.predicted_BFIX, found.predicted_BFIX,
                                  exact.predicted_BFIX)]
    policy_of = functools.partial(_policy, folder, agent)
    actions, cached = compare_actions(ours["logits"], logits_BTK, rows, domains, policy_of)
    texts, cached_texts = compare_texts(ours["logits"], logits_BTK, rows, domains, policy_of)
    comparisons += [*cached, *cached_texts]
    del agent, ours, found, policy_of
    gc.collect()
    release_freed_memory()
    comparisons += [dataclasses.replace(row, name=f"transformers {row.name}")
                    for row in (*verify_vision(folder / "vision"), *verify_language(folder / "language"))]
    targets = int((batch.language_weight_BT + batch.action_weight_BT > 0).sum())
    sizes = {"rows": batch.rows, "samples": sum(map(len, rows)), "images": int((batch.clip_BF >= 0).sum()),
             "slots": int((batch.segment_BS > 0).sum()), "targets": targets}
    return Parity(tuple(comparisons), actions, texts, sizes)


def _policy(folder: pathlib.Path, agent: torch_agent.Agent, domain: str) -> torch_agent.Policy:
    return torch_agent.Policy(folder, domain=domain, agent=agent)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, jitted to run once: compiling takes longer than running."""
    on_cpu = jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 1} if on_cpu else None)


def _outputs_of_visible(agent: Agent, params: Params, batch: Batch) -> Any:
    """The output on rows with only the visible patches."""
    run = _compiled(lambda params, batch: agent.apply(
        {"params": params}, batch, mask_keys_B=_masked(agent.config, batch)[0], visual_tokens="visible"))
    return run(params, batch)


def _masked(model: ModelConfig, batch: Batch) -> tuple[jax.Array, PatchMask]:
    """The keys of the rows' masks, and the masks."""
    keys_B = jax.vmap(jax.random.key)(jnp.asarray(batch.seed_B))
    mask = jax.jit(random_mask, static_argnums=(2, 3))
    return keys_B, mask(keys_B, jnp.asarray(batch.clip_BF), model.vision.patches, model.mae.mask_ratio)


def _ours(params: Params, config: Config, batch: Batch, keys_B: jax.Array, domains: int) -> dict[str, Any]:
    """Our agent's results as NumPy arrays; gradients have the names of the PyTorch module."""
    agent = Agent(config.model)

    # The batch is an argument, since the compiler would fold a constant.
    def states(agent: Agent, batch: Batch) -> tuple[jax.Array, jax.Array]:
        patches = patchify(batch.frames_BFHWC, config.model.vision.patch_size)
        tokens, vision = agent.vision(patches, batch.clip_BF, collect="hidden")
        x_BSD = agent.embed_row(batch, agent.connector(tokens))
        _, language = agent.language(x_BSD, batch.position_BS, batch.segment_BS, collect="hidden")
        assert vision is not None
        assert language is not None
        return vision, language

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, tuple[AgentOutput, dict[str, jax.Array]]]:
        output: Any = agent.apply({"params": params}, batch, mask_keys_B=keys_B)
        assert output.mask is not None
        sums = loss_sums(output, batch, domains)
        weights = loss_weights(batch, domains, output.mask.hide_BFI.shape[-1], classes=config.model.classes > 0)
        # Over all domains, as in torch_agent.losses.
        joint = means(*(jax.tree.map(lambda leaf: leaf.sum(keepdims=True), tree) for tree in (sums, weights)))
        forms = {form: total(sums, weights, dataclasses.replace(config.loss, form=form)) for form in ("mean", "eq5")}
        values = {"language": joint.language[0], "action": joint.action[0], "mae": joint.mae[0], **forms}
        if joint.label is not None:
            values["label"] = joint.label[0]
        return forms[config.loss.form], (output, values)

    run = _compiled(lambda params, batch: agent.apply({"params": params}, batch, method=states))
    vision, language = run(params, batch)
    (_, (output, losses)), gradients = _compiled(jax.value_and_grad(loss, has_aux=True))(params, batch)
    named = in_module(dict(to_tensors(jax.tree.map(np.asarray, gradients), config.model)))
    if config.model.vision.positions == "sincos":
        del named[FIXED_POSITIONS]
    return {"vision": np.asarray(vision), "language": np.asarray(language), "logits": np.asarray(output.logits_BTK),
            "patches": np.asarray(output.predicted_BFIX), "classes": output.classes_BY,
            "losses": {name: float(value) for name, value in losses.items()},
            "gradients": named}


def _compared(ours: dict[str, Any], agent: torch_agent.Agent, config: Config, batch: Batch,
              mask: PatchMask) -> tuple[list[Comparison], np.ndarray]:
    """Compare layers, outputs, losses and gradients in f32, and drop ours; also returns PyTorch's logits_BTK."""
    rows: list[Comparison] = []
    states: dict[str, list[np.ndarray]] = {"vision": [], "language": []}
    vision, language = agent.vision, agent.language

    def recorder(name: str) -> Callable[[Any, Any, Any], None]:
        return lambda _, inputs, output: states[name].append(output.detach().numpy().copy())

    first = language.layers[0]
    hooks = [first.register_forward_pre_hook(lambda module, inputs: recorder("language")(module, inputs, inputs[0]))]
    hooks += [layer.register_forward_hook(recorder("language")) for layer in language.layers]
    hooks += [layer.register_forward_hook(recorder("vision"))
              for layer in (vision.pre_layrnorm, *vision.encoder.layers)]
    tensors = as_torch(batch)
    output = agent(tensors, as_mask(mask))
    del states["vision"][: 1 + len(vision.encoder.layers)]  # the masked pass comes first
    for part, found in states.items():
        for layer, (mine, other) in enumerate(zip(ours.pop(part), found, strict=True)):
            name = f"{part}: after block {layer}" if layer else f"{part}: embeddings"
            rows.append(compare(name, other, mine, BLOCK if (part, layer) == ("vision", 0) else STACK))
    for hook in hooks:
        hook.remove()
    logits, patches = output.logits_BTK.detach(), output.predicted_BFIX
    assert patches is not None
    rows.append(compare("logits: of all targets", logits, _real(ours["logits"], logits), STACK))
    rows.append(compare("reconstructed patches: all hidden", patches.detach(), ours["patches"], STACK))

    if ours["classes"] is not None:
        assert output.classes_BY is not None
        rows.append(compare("classes: of the first clips", output.classes_BY.detach(), ours["classes"], STACK))

    forms = {form: torch_agent.losses(output, tensors, {**agent.config["loss"], "form": form})
             for form in ("mean", "eq5")}
    losses = {name: forms["mean"][name] for name in ("language", "action", "mae", "label")}
    losses |= {form: found["total"] for form, found in forms.items()}
    for name, value in ours["losses"].items():
        rows.append(compare(f"losses: {name}", losses[name].detach(), value, STACK))
    rows += _compared_gradients(ours.pop("gradients"), agent, forms[config.loss.form]["total"])
    return rows, logits.numpy()


def _compared_gradients(ours: dict[str, np.ndarray], agent: torch_agent.Agent, loss: torch.Tensor) -> list[Comparison]:
    """Norm of each tensor's difference, relative to the norm of its layer's gradient.

    The largest difference would be too strict: a ReLU with an input of 0 up to rounding may be open in one of the two.
    """
    squares: dict[str, float] = collections.defaultdict(float)
    for name, gradient in ours.items():
        squares[_layer(name)] += float(np.vdot(gradient, gradient))
    found: list[Comparison] = []

    def take(name: str, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        difference, parameter.grad = parameter.grad.numpy() - ours.pop(name), None
        norm = math.sqrt(squares[_layer(name)])
        relative = float(np.linalg.norm(difference)) / (norm or 1.0)
        found.append(Comparison(f"gradients: {name}", relative, norm, GRADIENT))

    for name, parameter in agent.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(functools.partial(take, name))
    loss.backward()
    # Parameters that the loss does not depend on have no gradient in PyTorch and zeros in JAX.
    found += [Comparison(f"gradients: {name}", float(np.abs(gradient).max()), 0.0, 0.0)
              for name, gradient in ours.items()]
    return found


def _layer(name: str) -> str:
    """The layer of a tensor; q, k and v are one, since the gradient of k's bias is pure rounding."""
    return re.sub(r"\.[qkv]_proj$", "", name.rpartition(".")[0])


def _real(logits: Any, theirs: torch.Tensor) -> np.ndarray:
    """Our logits without those of the token table's padding."""
    return np.asarray(logits, np.float32)[..., : theirs.shape[-1]]


def _compare_bf16(name: str, ours: Any, theirs: torch.Tensor | None, exact: np.ndarray) -> Comparison:
    """Compare bfloat16 results, with a tolerance from the rounding of ours."""
    assert theirs is not None
    mine, reference = _real(ours, theirs), _real(exact, theirs)
    rounding = float(np.max(np.abs(mine - reference)))
    row = compare(f"bf16: {name}", theirs.float(), mine, STACK)
    return dataclasses.replace(row, tolerance=max(BF16_FACTOR * rounding, STACK))


def as_torch(batch: Batch) -> dict[str, torch.Tensor]:
    """The fields of a batch by name, for torch_agent."""
    fields = {field.name: np.asarray(getattr(batch, field.name)) for field in dataclasses.fields(batch)}
    return {name: torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" and array.dtype != np.uint8
                                   else array.copy()) for name, array in fields.items()}


def as_mask(mask: PatchMask) -> torch_agent.Mask:
    """The same mask for torch_agent."""
    return torch_agent.Mask(*(torch.from_numpy(np.array(part, np.int64))
                              for part in (mask.keep_BFJ, mask.hide_BFI, mask.restore_BFP)))
