"""Time to an action of the agent on random observations: cached, uncached, and the same agent in PyTorch, in one run.

    python benchmarks/act_latency.py [--checkpoint DIR [--domain NAME] | --random full|tiny [--dtype bfloat16]]
        [--frames 4] [--steps 5] [--batch 1 8] [--only NAME ...] [--no-parity] [--json PATH]

    sliding     ours, as Policy acts by default: the window is read anew from kept encodings
    ahead       ours, sliding with ahead=True: what is known of the next row is read after the action is returned
    flushed     ours, the keys and values of the window kept as well, and dropped when it is full
    uncached    ours without any cache: for every id that has an alternative, as those alone are asked for, the whole
                row, its images included, through the whole model
    naive       the same for every id of the action, also those that the automaton leaves no choice of
    pytorch     the exported agent (convert.torch_agent.Policy): kept encodings, key-value cache; sliding window
    generate    transformers' OPTForCausalLM.generate on the row that the exported agent embeds, with its own cache;
                as one writes it first: every image of the window is encoded at each action

All compute in the checkpoint's dtype, on a GPU where there is one, and take turns, an action each, on the same
observations, after their windows are full. Medians of all turns: `action` until the action is there; `step` until
nothing is being computed any more, which is longer with `ahead` alone: a robot that moves for the difference waits for
`action`, one that asks at once for `step`; `processor` seconds of the step, which depend little on the load of the
machine. Results: benchmarks/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from machine import describe, write_json
from product_rates import torch_device
from transformers import OPTForCausalLM
from uncached import Uncached

from agent_jax.actions import LANGUAGE_TABLE, LANGUAGE_TABLE_STATE, BoundSpec
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.checkpoint import Checkpoints
from agent_jax.checkpoints.restore import restore_acting_parameters
from agent_jax.config import (
    Config,
    DomainConfig,
    LanguageConfig,
    MaeConfig,
    ModelConfig,
    VisionConfig,
    from_config_dict,
)
from agent_jax.convert import to_pytorch
from agent_jax.convert.parity.actions import ChoiceCounts
from agent_jax.convert.parity.pytorch import Parity
from agent_jax.convert.pytorch import torch_agent
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Step, Window
from agent_jax.json_files import json_path
from agent_jax.models.agent import init_params
from agent_jax.policy import Policy
from agent_jax.policy.decoding_tables import DecodingTables
from agent_jax.policy.observation import prepare
from agent_jax.runtime.host_memory import tune_heap
from agent_jax.train.restart import checkpoint_meta

Act = Callable[..., Any]  # images and states of all environments -> their actions
TEXT = "go to the red ball"  # fits the shortest texts, of configs/babyai.py
OURS: dict[str, dict[str, Any]] = {"sliding": {}, "ahead": {"ahead": True}, "flushed": {"history": "flushed"}}
UNCACHED = {"uncached": False, "naive": True}  # whether every id is asked for
WAYS = [*OURS, *UNCACHED, "pytorch", "generate"]


def random_checkpoint(directory: Path, size: str, frames: int, dtype: Any) -> Path:
    """A checkpoint of random parameters that acts as in Language-Table: an image, a state, two numbers to say."""
    # Of the full model's vocabulary, only the length matters here: as many ids of text as OPT has.
    vocabulary = Vocabulary.build("bytes", ("iafm",))
    model = ModelConfig(language=LanguageConfig(vocabulary_size=vocabulary.size))
    if size == "tiny":
        model = ModelConfig(
            vision=VisionConfig(image_size=56, patch_size=8, width=96, depth=3, heads=4, mlp_width=192),
            language=LanguageConfig(width=96, depth=3, heads=4, mlp_width=192, vocabulary_size=vocabulary.size),
            mae=MaeConfig(width=32, depth=1, heads=4, mlp_width=64))
    config = Config(model=dataclasses.replace(model, dtype=dtype))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, domains={"table": DomainConfig()}))
    domain = Domain("table", 0, BoundSpec(LANGUAGE_TABLE, vocabulary), BoundSpec(LANGUAGE_TABLE_STATE, vocabulary),
                    vocabulary, window=frames, stride=frames, max_text=40, cameras=("steps/observation/rgb",),
                    instruction="instruction", image_size=model.vision.image_size)
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    with Checkpoints(directory, keep_latest=1, keep_best=0) as checkpoints:
        checkpoints.save(1, {"params": params}, checkpoint_meta(config, vocabulary, [domain], None))
    return directory


def ours(policy: Policy, texts: Sequence[str]) -> Act:
    """Cached acting."""
    return lambda images, states: policy.act(list(images), texts, range(len(images)),
                                             states if policy.domain.state else None)


def uncached(path: Path, domain: Domain, texts: Sequence[str], *, every: bool) -> Act:
    """A whole forward pass for each id, or for each that has an alternative; greedy."""
    directory, named = checkpoint.locate(path)
    meta = checkpoint.read_meta(directory, named)
    config = from_config_dict(meta["config"])
    params = restore_acting_parameters(directory, config, meta["step"])
    assert domain.spec is not None
    reference, choices = Uncached(config, domain), DecodingTables.of(domain.spec.automaton)
    automaton = choices.automaton
    past: list[tuple[Step, ...]] = [()] * len(texts)

    def act(images: Sequence[np.ndarray], states: Sequence[Any], *, ask: bool = True) -> list[np.ndarray]:
        """Without `ask`, takes any legal action, and no time: enough where a window is only to be filled."""
        seen = [prepare(domain, image, text, state) for image, text, state in zip(images, texts, states, strict=True)]
        ids = [[] if every else [*choices.first_ids.tolist()] for _ in seen]
        where = [automaton.start if every else choices.first_state] * len(seen)
        while any(state != automaton.accept for state in where):
            newest = [Step(one.frames, one.state_ids, np.asarray(said, np.int32))
                      for one, said in zip(seen, ids, strict=True)]
            windows = [Window(domain.index, one.text_ids, (*steps, now), seed=0, video=domain.video,
                              first_position=domain.first_position)
                       for one, steps, now in zip(seen, past, newest, strict=True)]
            logits_BA = reference.logits(params, windows) if ask else np.zeros((len(windows), len(automaton.ids_A)))
            for i, logits_A in enumerate(logits_BA):
                if where[i] != automaton.accept:
                    legal_A = automaton.next_QA[where[i]] >= 0
                    column = int(np.argmax(np.where(legal_A, logits_A, -np.inf)))
                    where[i] = automaton.next_QA[where[i], column]
                    ids[i].append(automaton.ids_A[column])
                    if not every:
                        ids[i] += choices.forced_QR[where[i], : choices.count_Q[where[i]]].tolist()
                        where[i] = choices.after_Q[where[i]]
        for i, one in enumerate(seen):
            past[i] = (*past[i], Step(one.frames, one.state_ids, np.asarray(ids[i], np.int32)))[1 - domain.window :]
        return [np.asarray(said, np.int32) for said in ids]

    return act


def generate(folder: Path, agent: torch_agent.Agent, name: str, texts: Sequence[str]) -> Act:
    """transformers' generate, guided by the automaton; the images of the window are encoded at each action."""
    policy = torch_agent.Policy(folder, domain=name, agent=agent)
    dtype = next(agent.parameters()).dtype
    device = agent.scale.device
    model: Any = OPTForCausalLM.from_pretrained(folder / "language", dtype=dtype).to(device).eval()
    codec = policy.domain.actions
    first, start = codec.forced(codec.start)
    text_ids = [policy.domain.text_ids(text) for text in texts]

    def allowed(_: int, said: torch.Tensor) -> list[int]:
        state = start
        for token in said.tolist():
            state = codec.ways[state].get(token, codec.accept)
        return list(codec.ways[state]) or [torch_agent.EOS]

    @torch.inference_mode()
    def act(images: Sequence[np.ndarray], states: Sequence[Any]) -> list[list[int]]:
        steps = policy.observe(list(images), range(len(images)), states)
        rows = []
        for i, now in enumerate(steps):
            episode = policy._episodes[i]
            frames = [[policy.domain.image(image) for image in step.images] for _, step in episode.past]
            if frames:
                again = policy._encode(frames)
                episode.past = list(zip(again, [step for _, step in episode.past], strict=True))
            rows.append(policy._embedded(policy._row(episode, text_ids[i], now, first))[0])
        said = model.generate(inputs_embeds=torch.stack(rows), do_sample=False, use_cache=True,
                              attention_mask=torch.ones(len(rows), len(rows[0]), dtype=torch.long, device=device),
                              max_new_tokens=policy_length - len(first), prefix_allowed_tokens_fn=allowed)
        for i, (tokens, step) in enumerate(steps):
            ids, state = list(first), start
            for token in said[i].tolist():
                if state != codec.accept:
                    ids.append(token)
                    state = codec.ways[state][token]
            policy.remember(i, tokens, dataclasses.replace(step, action_ids=ids))
        return said.tolist()

    policy_length = len(codec.first())  # of Language-Table all actions are of one length
    return act


def measure(ways: dict[str, Act], domain: Domain, batch: int, steps: int) -> dict[str, dict[str, float]]:
    """Median seconds of each way: until the action, of the whole step, and of the processor; the ways take turns."""
    random = np.random.default_rng(0)
    size = (batch, domain.image_size, domain.image_size, 3)
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for turn in range(domain.window + steps):
        images = random.integers(0, 256, size, np.uint8)
        states = [{key: np.zeros(shape, dtype) for key, (shape, dtype) in domain.state.spec.fields.items()}
                  if domain.state else None] * batch
        for name, act in ways.items():
            how = {"ask": False} if name in UNCACHED and turn < domain.window - 1 else {}
            begun, spent = time.perf_counter(), time.process_time()
            act(images, states, **how)
            told = time.perf_counter() - begun
            jax.block_until_ready(jax.live_arrays())  # what is being read ahead
            if turn >= domain.window:  # windows are full, everything is compiled
                seconds[name].append((told, time.perf_counter() - begun, time.process_time() - spent))
    return {name: dict(zip(("action", "step", "processor"), np.median(found, axis=0).tolist(), strict=True))
            for name, found in seconds.items()}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--folder", type=Path, help="what to-pytorch made of the checkpoint; else it is made here")
    parser.add_argument("--domain", default="")
    parser.add_argument("--random", choices=("full", "tiny"), default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of --random")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS, metavar="NAME")
    parser.add_argument("--no-parity", dest="parity", action="store_false",
                        help="export without the parity check, which takes longer than everything else")
    parser.add_argument("--json", type=json_path)
    options = parser.parse_args()
    machine = describe(accelerators=False)
    tune_heap()
    with tempfile.TemporaryDirectory() as scratch:
        path = options.checkpoint or random_checkpoint(Path(scratch) / "random", options.random, options.frames,
                                                       options.dtype)
        policies = {name: Policy.load(path, domain=options.domain, **how) for name, how in OURS.items()
                    if name in options.only or name == "sliding"}
        domain, folder = policies["sliding"].domain, options.folder
        if folder is None and {"pytorch", "generate"} & set(options.only):
            folder = Path(scratch) / "torch"
            if not options.parity:
                none = ChoiceCounts(0, 0, 0)
                nothing = Parity((), none, none, {})
                to_pytorch.check_parity = lambda *_: nothing
            to_pytorch.export(path, folder)
        found = {}
        for batch in options.batch:
            found[batch] = compare(path, folder, policies, domain, batch, options)
            if options.json:
                write_json(options.json, machine,
                           {"seconds": found, "frames": domain.window, "load_after": os.getloadavg()[0]})


def compare(path: Path, folder: Path | None, policies: dict[str, Policy], domain: Domain, batch: int,
            options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All ways at one batch size, printed."""
    texts = [TEXT] * batch
    for policy in policies.values():
        policy.forget(range(batch))
    ways: dict[str, Act] = {name: ours(policy, texts) for name, policy in policies.items()}
    for name, every in UNCACHED.items():
        if name in options.only:
            ways[name] = uncached(path, domain, texts, every=every)
    if folder is not None:
        dtype = from_config_dict(checkpoint.read_meta(*checkpoint.locate(path))["config"]).model.dtype
        agent = torch_agent.Agent.load(folder, getattr(torch, dtype), torch_device())
        exported = torch_agent.Policy(folder, domain=domain.name, agent=agent)
        ways["pytorch"] = lambda images, states: exported.act(
            list(images), texts, range(batch), None if states[0] is None else states)
        ways["generate"] = generate(folder, agent, domain.name, texts)
    ways = {name: act for name, act in ways.items() if name in options.only}
    found = measure(ways, domain, batch, options.steps)
    against = [name for name in WAYS if name in found and name not in OURS]
    print(f"batch {batch}, load {os.getloadavg()[0]:.1f}; milliseconds, and how many times faster than the other "
          "ways an action is (a step; by processor time)")
    print(f"  {'':<9} {'action':>8} {'step':>8} {'processor':>9}  " + "".join(f"{name:<22}" for name in against))
    for name, mine in found.items():
        ratios = [", ".join(f"{found[other][key] / mine[key]:.2f}" for key in mine) for other in against]
        ratios = [f"{first} ({rest})" for first, rest in (ratio.split(", ", 1) for ratio in ratios)]
        print(f"  {name:<9} " + " ".join(f"{1e3 * mine[key]:8.2f}" for key in mine) + "   "
              + "".join(f"{ratio:<22}" for ratio in ratios if name in OURS), flush=True)
    return found


if __name__ == "__main__":
    main()
