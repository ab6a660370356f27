"""The whole network of an exported folder: loads it, saves it, and computes logits and reconstructed patches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name in PyTorch's documentation
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agent_jax.convert.pytorch.language import Language, causal_mask
from agent_jax.convert.pytorch.layers import take
from agent_jax.convert.pytorch.mae import MaeDecoder, Mask
from agent_jax.convert.pytorch.vision import Vision

PARTS = {"vision": "vision_model.", "language": "model.decoder."}  # folder: prefix of the names in its file


class Output(NamedTuple):
    """Inputs of the losses; patches are None without a mask, classes without a class head."""

    logits_BTK: Tensor
    predicted_BFIX: Tensor | None = None
    pixels_BFIX: Tensor | None = None
    classes_BY: Tensor | None = None  # logits of the class of the row's first clip


class Agent(nn.Module):
    """Encoder, connector, language model and masked-autoencoder decoder of an exported folder."""

    scale: Tensor
    shift: Tensor

    def __init__(self, description: Mapping[str, Any]):
        """Build the modules; `description` is the content of agent.json."""
        super().__init__()
        self.description, self.config = description, description["config"]
        model = self.config["model"]
        self.vision, self.language = Vision(model["vision"]), Language(model["language"])
        self.connector = nn.Linear(model["vision"]["width"], model["language"]["width"])
        self.mae = MaeDecoder(model["mae"], model["vision"])
        classes = model.get("classes", 0)
        self.classifier = nn.Linear(model["vision"]["width"], classes) if classes else None
        mean, std = (np.float32(description["preprocessing"][name]) for name in ("mean", "std"))
        # Constants, made on the host for any default device; no file holds them.
        self.register_buffer("scale", torch.from_numpy(1 / (255 * std)), persistent=False)
        self.register_buffer("shift", torch.from_numpy(-mean / std), persistent=False)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Agent:
        """The agent of an exported folder, in evaluation mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: another format, or tensors are missing, unknown or of another shape.
        """
        folder = Path(folder)
        description = json.loads((folder / "agent.json").read_text(encoding="utf-8"))
        if description.get("format") != 1:
            raise ValueError(f"{folder / 'agent.json'}: format {description.get('format')!r}, expected 1")
        weights = load_file(folder / "agent.safetensors")
        for part, prefix in PARTS.items():
            tensors = load_file(folder / part / "model.safetensors")
            weights |= {f"{part}.{name.removeprefix(prefix)}": tensor for name, tensor in tensors.items()}
        with torch.device("meta"):  # without random initialisation
            agent = cls(description)
        try:
            agent.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{folder}: its tensors are not those that agent.json describes: {error}") from error
        return agent.to(device).eval()

    def save(self, folder: str | Path, source: str | Path) -> None:
        """Write a new folder with these parameters and the other files of `source`.

        Raises:
            FileExistsError: `folder` exists.
        """
        folder = Path(folder)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        if folder.exists():
            raise FileExistsError(f"{folder} exists already")
        skipped = shutil.ignore_patterns("*.safetensors", "parity.json", "README.md", "__pycache__")  # of other weights
        shutil.copytree(source, partial, ignore=skipped)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        for part, prefix in PARTS.items():
            names = tensor_names(Path(source) / part / "model.safetensors", prefix)
            tensors = {prefix + name: state.pop(f"{part}.{name}") for name in names}
            save_file(tensors, partial / part / "model.safetensors", {"format": "pt"})
        save_file(state, partial / "agent.safetensors", {"format": "pt"})
        for file in partial.glob("**/*.safetensors"):  # the library lets only the owner read them
            file.chmod(partial.stat().st_mode & 0o666)
        partial.rename(folder)

    def patchify(self, frames_BFHWC: Tensor) -> Tensor:
        """CLIP-normalised patches_BFPX of uint8 images; X runs over row, column, channel; P over rows, then columns."""
        side = self.config["model"]["vision"]["patch_size"]
        pixels = frames_BFHWC.float() * self.scale + self.shift
        grid = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # B F rows y columns x C
        return grid.permute(0, 1, 2, 4, 3, 5, 6).flatten(4).flatten(2, 3)

    def encode(self, frames_BFHWC: Tensor, clip_BF: Tensor) -> Tensor:
        """Projected visual tokens (B, F, V, D) of whole images."""
        return self.connector(self.vision(self.patchify(frames_BFHWC), clip_BF))

    def forward(self, batch: Mapping[str, Tensor], mask: Mask | None = None, visual_tokens: str = "all") -> Output:
        """Logits of the targets and, with a mask, the reconstructed patches.

        Args:
            batch: fields of a batch by name, as from `lay_out`; `slot_BT` holds the slots whose logits are computed.
            mask: patches to hide; None: no masked pass.
            visual_tokens: input of the language model: "all" encodes every patch in a second pass, "visible" uses the
                masked pass.

        Raises:
            ValueError: "visible" without a mask.
        """
        if visual_tokens == "visible" and mask is None:
            raise ValueError('visual_tokens="visible" needs a mask: only a masked pass has visible tokens')
        patches_BFPX, clip_BF = self.patchify(batch["frames_BFHWC"]), batch["clip_BF"]
        predicted = pixels = tokens_BFVD = None
        if mask is not None:
            tokens_BFVD = self.vision(patches_BFPX, clip_BF, mask.keep_BFJ)
            predicted, pixels = self.mae(tokens_BFVD, mask), take(patches_BFPX, mask.hide_BFI)
        if visual_tokens == "all" or tokens_BFVD is None:
            tokens_BFVD = self.vision(patches_BFPX, clip_BF)
        classes_BY = self.classify(tokens_BFVD, clip_BF) if self.classifier else None
        visual_BGD = self.connector(tokens_BFVD).flatten(1, 2)
        visual_BS = batch["visual_BS"].long()
        x_BSD = torch.where(visual_BS[..., None] >= 0, take(visual_BGD, visual_BS.clamp(min=0)).float(),
                            self.language.embed_tokens(batch["token_BS"].long()).float())
        dtype = self.language.embed_tokens.weight.dtype
        hidden_BSD = self.language(x_BSD.to(dtype), batch["position_BS"].long(), causal_mask(batch["segment_BS"]))
        logits_BTK = self.language.logits(take(hidden_BSD, batch["slot_BT"].long()))
        return Output(logits_BTK, predicted, pixels, classes_BY)

    def classify(self, tokens_BFVD: Tensor, clip_BF: Tensor) -> Tensor:
        """classes_BY of each row's first clip, from the mean CLS of its images."""
        assert self.classifier is not None
        wide = torch.promote_types(tokens_BFVD.dtype, torch.float32)
        member_BF = (clip_BF == clip_BF[:, :1]).to(wide)
        mean_BD = (member_BF[..., None] * tokens_BFVD[:, :, 0].to(wide)).sum(1) / member_BF.sum(1, keepdim=True)
        with torch.autocast(mean_BD.device.type, enabled=False):
            return F.linear(mean_BD, self.classifier.weight.to(wide), self.classifier.bias.to(wide))


def tensor_names(path: Path, prefix: str) -> list[str]:
    """Names of the tensors of a file, without their prefix."""
    with safe_open(path, framework="pt") as file:
        return [name.removeprefix(prefix) for name in file.keys()]  # noqa: SIM118 - no mapping
