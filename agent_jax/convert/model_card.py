"""README.md of an exported folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agent_jax.checkpoints.exported.tensors import shapes
from agent_jax.config import Config
from agent_jax.convert.parity.pytorch import Parity
from agent_jax.data.pipeline.domains import Domain


def text(name: str, source: Mapping[str, Any], config: Config, domains: Mapping[str, Domain], parity: Parity,
         run: Sequence[str] = ()) -> str:
    """The card, in Markdown with the fields that model hubs read; `run` are the lines of card_of_run.py."""
    model = config.model
    by_layout = {layout: [name for name, domain in domains.items() if domain.layout == layout]
                 for layout in ("actions", "answer", "label")}
    values = sum(math.prod(shape) for tensors in shapes(model).values() for shape in tensors.values())
    lines = [
        "---", "library_name: pytorch", "tags: [robotics, agent, vision-language-action]", "---", "", f"# {name}", "",
        "An Interactive Agent Foundation Model (arXiv 2402.05929), trained with agent_jax "
        f"{source['agent_jax']} and exported from step {source['step']:,} ({source['weights']} parameters, stored in "
        f"{source['dtype']}): {values:,} values.", "",
        f"- `vision/`: CLIP vision transformer, {model.vision.depth} blocks of width {model.vision.width}, "
        f"{model.vision.image_size} pixels in patches of {model.vision.patch_size}, `CLIPVisionModel`"
        + (" (its temporal attention is in `agent.safetensors`)" if model.vision.temporal_attention else ""),
        f"- `language/`: OPT, {model.language.depth} blocks of width {model.language.width}, "
        f"{model.language.vocabulary_size:,} ids, the tokenizer's text ids first, `OPTForCausalLM`",
        "- `agent.safetensors`, `agent.json`, `vocabulary.json`: the other parts of the agent, its domains and ids",
        "- `torch_agent.py`: the whole agent in PyTorch; needs torch, numpy, safetensors, tokenizers, pillow",
        "- `parity.json`: the differences between PyTorch and JAX on these weights", "",
        "In JAX, with `agent_jax` (this folder, or its name on the Hugging Face hub):", "", "```python",
        "from agent_jax import Policy", "", f'policy = Policy.from_pretrained("{name}"'
        + (f', domain="{by_layout["actions"][0]}")' if len(by_layout["actions"]) > 1 else ")"), "```", "",
        "In PyTorch:", "", "```python", "from torch_agent import Agent, Policy", "",
        'agent = Agent.load(".")                     # trains: see losses(), lay_out() and main() in torch_agent.py',
        *[f'policy = Policy(".", domain="{name}", agent=agent)' for name in by_layout["actions"][:1]],
        *(['policy = Policy(".", agent=agent)'] if domains and not by_layout["actions"] else []),
        *[f'policy.say([image], ["..."], domain="{name}")      # an image or a clip for each prompt'
          for name in by_layout["answer"][:1]],
        *[f'policy.classify([clip], domain="{name}")' for name in by_layout["label"][:1]], "```", "",
    ]
    if domains:
        lines += ["`python torch_agent.py .` predicts once and trains for two steps in each domain.", ""]
    return "\n".join([*lines, *_ending(domains, parity.summary(), run)])


def onnx_text(name: str, source: Mapping[str, Any], manifest: Mapping[str, Any], domains: Mapping[str, Domain],
              parity: str) -> str:
    """The card of a folder for onnxruntime."""
    first = next(iter(domains.values()))
    call = {"actions": 'policy.act([image], ["..."], ["robot 0"])', "answer": 'policy.say([image], ["..."])',
            "label": "policy.classify([clip])"}[first.layout]
    lines = [
        "---", "library_name: onnxruntime", "tags: [robotics, agent, vision-language-action]", "---", "", f"# {name}",
        "", "An Interactive Agent Foundation Model (arXiv 2402.05929), trained with agent_jax "
        f"{source['agent_jax']} and exported from step {source['step']:,} in {manifest['precision']}.", "",
        f"- `encoder.onnx`, `language.onnx`: the graphs, opset {manifest['opset']}",
        "- `agent.json`, `vocabulary.json`, `language/`: domains, ids, tokenizer",
        f"- `onnx_agent.py`: acts; needs onnxruntime {manifest['onnxruntime']} or later, numpy, tokenizers, pillow",
        "- `manifest.json`: hashes, checked when the folder is loaded", "",
        "```python", "from onnx_agent import Policy", "", f'policy = Policy(".", domain="{first.name}")', call, "```",
        "", "`python onnx_agent.py .` predicts once in each domain.", "",
    ]
    return "\n".join([*lines, *_ending(domains, parity)])


def _ending(domains: Mapping[str, Domain], parity: str, run: Sequence[str] = ()) -> list[str]:
    lines = []
    if domains:
        lines += ["| domain | predicts | window | cameras | state |", "|---|---|---|---|---|"]
        lines += [f"| {domain.name} | {_predicts(domain)} | {domain.window} steps | {', '.join(domain.camera_names)} | "
                  f"{', '.join(domain.state.spec.fields) if domain.state else 'none'} |" for domain in domains.values()]
        lines += ["", "Actions and states are in the units of their specs in `agent.json`.", ""]
    return [*lines, *run, "## Parity with JAX", "", "```", parity, "```", "",
            "Not for real robots without safety filters; not a medical device. Weights that were initialised from "
            "CLIP or OPT keep their licences.", ""]


def _predicts(domain: Domain) -> str:
    if domain.spec is None:
        return {"answer": "text", "label": "a class"}.get(domain.layout, domain.layout)
    parts = ", ".join(f"{part.place}{f' ({part.unit})' if part.unit else ''}" for part in domain.spec.spec.parts)
    return f"{domain.spec.spec.name}: {parts}"
