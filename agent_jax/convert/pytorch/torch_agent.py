"""The agent in PyTorch, in one file: trains, acts and answers with an exported folder, without JAX.

    agent = Agent.load(FOLDER)                     # torch.nn.Module; agent.save(NEW_FOLDER, FOLDER) writes it
    output = agent(batch, mask)                    # logits of the targets, reconstructed patches
    losses(output, batch, agent.config["loss"])    # language, action and masked-autoencoder loss, and their total

    policy = Policy(FOLDER)
    policy.act(images, ["push the red block"], ["robot 0"])    # [{"action": array([0.0015, -0.0285])}]
    policy.say([clip], ["what happens?"])                      # [GeneratedText(text="the door opens", ...)]
    policy.classify([clip])                                    # [Classification(label=2, ...)]

Needs torch, numpy, safetensors, tokenizers, pillow. The folder:

    agent.json          sizes, domains (with actions: their ActionSpec), preprocessing
    vision/             CLIPVisionModel of transformers
    language/           OPTForCausalLM of transformers, and the tokenizer
    agent.safetensors   the parts that CLIP and OPT lack

The model is that of "An Interactive Agent Foundation Model" (Durante et al., 2024, arXiv 2402.05929). Dimensions:

    B batch (rows)      F images of a row      P patches of an image      V visual tokens of an image, CLS first
    S slots of a row    T targets of a row     Z slots as attention keys  X pixel values of a patch
    N heads, H wide     D model width          K ids of the vocabulary
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name in PyTorch's documentation
from torch import Tensor

from agent_jax.convert.exported.codec import Codec
from agent_jax.convert.exported.domain import EOS, Domain
from agent_jax.convert.exported.network import Episode
from agent_jax.convert.exported.policy import ExportedPolicy
from agent_jax.convert.exported.prompted import Classification, GeneratedText, sampled
from agent_jax.convert.exported.row import Row, Step
from agent_jax.convert.pytorch.agent import Agent, Output
from agent_jax.convert.pytorch.language import POSITION_OFFSET, Cache, Language
from agent_jax.convert.pytorch.layers import ACTIVATIONS
from agent_jax.convert.pytorch.losses import losses, parameter_groups
from agent_jax.convert.pytorch.mae import Mask, random_mask
from agent_jax.convert.pytorch.samples import lay_out

__all__ = ["ACTIVATIONS", "EOS", "POSITION_OFFSET", "Agent", "Classification", "Codec", "Domain",
           "GeneratedText", "Language", "Mask", "Output", "Policy", "Step", "lay_out", "losses", "parameter_groups",
           "random_mask", "sampled"]


class Policy(ExportedPolicy):
    """Acts, answers and classifies with an `Agent`; the history slides."""

    def __init__(self, folder: str | Path, *, domain: str = "", agent: Agent | None = None, temperature: float = 0.0,
                 seed: int = 0):
        """Load a domain and, unless given, the agent.

        Args:
            folder: exported, with agent.json.
            domain: to act, answer or classify in; may be empty if there is at most one to act in.
            agent: on any device; None: load it in f32.
            temperature: of sampling among the legal ids of actions; 0: greedy.
            seed: of sampling actions.

        Raises:
            ValueError: there is no such domain, or `domain` is empty and there are several to act in.
        """
        self.agent = agent or Agent.load(folder)
        super().__init__(folder, self.agent.description, domain=domain, temperature=temperature, seed=seed)

    @torch.inference_mode()
    def _tokens(self, frames_BFHWC: np.ndarray, clip_BF: np.ndarray) -> Tensor:
        return self.agent.encode(*self._on_device(frames_BFHWC, clip_BF))

    @torch.inference_mode()
    def _probabilities(self, frames_BFHWC: np.ndarray, clip_BF: np.ndarray) -> np.ndarray:
        frames, clip = self._on_device(frames_BFHWC, clip_BF)
        tokens = self.agent.vision(self.agent.patchify(frames), clip)
        return self.agent.classify(tokens, clip).softmax(dim=-1).cpu().numpy()

    def _on_device(self, *arrays: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(np.require(array, None, ["C", "W"])).to(self.agent.scale.device) for array in arrays]

    @torch.inference_mode()
    def _read(self, rows: Sequence[Row], ids: np.ndarray, room: int, episodes: Sequence[Episode] = ()
              ) -> Generator[np.ndarray, Sequence[Sequence[int]], None]:
        language, device = self.agent.language, self.agent.scale.device
        x_BSD, position_BS, real_BC = _stacked([self._embedded(row) for row in rows])
        next_B = position_BS.max(dim=1)[0] + 1
        cache = Cache(self.agent.config["model"]["language"], len(rows), x_BSD.shape[1] + room, x_BSD)
        while True:
            hidden = language(x_BSD, position_BS, cache.append(real_BC), cache)
            last_BD = hidden[torch.arange(len(rows)), real_BC.sum(dim=1).clamp(min=1) - 1]
            pending = yield language.logits(last_BD).cpu().numpy()[:, ids]
            width, count = max(map(len, pending)), torch.tensor([len(more) for more in pending])
            token_BC = torch.tensor([[*more, *[0] * (width - len(more))] for more in pending], device=device)
            real_BC = (torch.arange(width) < count[:, None]).to(device)
            position_BS = torch.where(real_BC, next_B[:, None] + torch.arange(width, device=device), 0)
            next_B = next_B + real_BC.sum(dim=1)
            x_BSD = language.embed_tokens(token_BC)

    def _embedded(self, row: Row) -> tuple[Tensor, Tensor]:
        """The embedded row (S, D), and its positions (S,)."""
        pieces, position_S = row
        device, embed = self.agent.scale.device, self.agent.language.embed_tokens
        x_SD = torch.cat([embed(torch.tensor(piece, device=device)) if isinstance(piece, list) else piece
                          for piece in pieces])
        return x_SD, torch.from_numpy(position_S).to(device)


def _stacked(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of different lengths as x_BSD and position_BS, padded at their end, and a mask of what is not padding."""
    used = torch.tensor([len(x) for x, _ in rows], device=rows[0][0].device)
    length = int(used.max())
    x_BSD = torch.stack([F.pad(x, (0, 0, 0, length - len(x))) for x, _ in rows])
    position_BS = torch.stack([F.pad(position, (0, length - len(position))) for _, position in rows])
    return x_BSD, position_BS, torch.arange(length, device=used.device) < used[:, None]


def main(folder: str) -> None:
    """Predict once and train for two steps in each domain, on random images, to test the folder."""
    agent, random = Agent.load(folder), np.random.default_rng(0)
    vision = agent.config["model"]["vision"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    for name in [*agent.description["acting"], *agent.description.get("prompted", {})]:
        policy = Policy(folder, domain=name, agent=agent)
        domain = policy.domain
        size = (len(domain.cameras), domain.image_size, domain.image_size, 3)
        images = list(random.integers(0, 256, size, np.uint8))
        sample: tuple[Any, ...]
        if domain.actions is not None:
            state_ids = domain.state.first() if domain.state else []
            states = [domain.state.decode(state_ids)] if domain.state else None
            print(f"{name}: an action {policy.act([images], ['go'], ['robot 0'], states)}")
            sample = (domain.text_ids("go"), [Step(images, state_ids, domain.actions.first())])
        elif domain.layout == "answer":
            print(f"{name}: an answer {policy.say([[images]], ['a'])}")
            sample = (domain.text_ids("a"), [Step(images)], domain.answer_ids(""))
        else:
            print(f"{name}: a class {policy.classify([[images]])}")
            sample = (domain.text_ids("a"), [Step(images)], 0)
        batch = lay_out(domain, [sample], patches)
        optimizer = torch.optim.AdamW(parameter_groups(agent, 0.05), lr=1e-4)
        agent.train()
        for _ in range(2):
            mask = random_mask(batch["clip_BF"], patches, agent.config["model"]["mae"]["mask_ratio"])
            found = losses(agent(batch, mask), batch, agent.config["loss"])
            optimizer.zero_grad()
            found["total"].backward()
            optimizer.step()
            print(f"{name}: losses", {kind: round(loss.item(), 4) for kind, loss in found.items()})
        agent.eval()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected one argument: the exported folder")
    main(sys.argv[1])
