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

import json
import math
import shutil
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name in PyTorch's documentation
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

EOS = 2  # </s>, the first token of every row
POSITION_OFFSET = 2  # the first two rows of OPT's position table are unused
PARTS = {"vision": "vision_model.", "language": "model.decoder."}  # folder: prefix of the names in its file
PREDICTED = {"actions": "actions", "answer": "text", "label": "class"}  # by layout of a domain
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}


# ---------------------------------------------------------------------------------------------------------------------
# The network


class Attention(nn.Module):
    """q, k, v and output projections, named as in CLIP and OPT; the caller attends."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (..., D) -> q, k, v (..., N, H)."""
        return tuple(p(x).unflatten(-1, (self.heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))

    def out(self, heads: Tensor) -> Tensor:
        """(..., N, H) -> (..., D)."""
        return self.out_proj(heads.flatten(-2))


def attend(q_BSNH: Tensor, k_BZNH: Tensor, v_BZNH: Tensor, mask: Tensor | None = None) -> Tensor:
    """out_BSNH; `mask` broadcasts to (B, N, S, Z), True where a query may attend to a key."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSNH, k_BZNH, v_BZNH))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


class Mlp(nn.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(width, hidden), nn.Linear(hidden, width), activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class VisionBlock(nn.Module):
    """CLIP's block over images (B, F, V, D), with temporal attention in a video model."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        width, eps = c["width"], c["layer_norm_eps"]
        self.layer_norm1, self.self_attn = nn.LayerNorm(width, eps), Attention(width, c["heads"])
        self.layer_norm2, self.mlp = nn.LayerNorm(width, eps), Mlp(width, c["mlp_width"], c["activation"])
        self.temporal = c["temporal_order"] if c.get("temporal_attention") else "none"
        if self.temporal != "none":
            self.temporal_norm, self.temporal_attn = nn.LayerNorm(width, eps), Attention(width, c["heads"])

    def forward(self, x: Tensor, clip_BF: Tensor | None) -> Tensor:
        """`clip_BF` is the clip of each image; None: each image is its own clip."""
        spatial_input = x + self._across_images(x, clip_BF) if self.temporal == "before" else x
        x = x + self._within_images(self.layer_norm1(spatial_input), clip_BF)
        if self.temporal == "after":
            x = x + self._across_images(x, clip_BF)
        return x + self.mlp(self.layer_norm2(x))

    def _within_images(self, x: Tensor, clip_BF: Tensor | None) -> Tensor:
        """A patch attends to its image and CLS; CLS attends to all patches of its clip (Bain et al., 2021)."""
        q, k, v = self.self_attn.project(x)
        if self.temporal == "none" or clip_BF is None:
            out = attend(*(y.flatten(0, 1) for y in (q, k, v))).unflatten(0, x.shape[:2])
        else:
            patches = attend(q[:, :, 1:].flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)).unflatten(0, x.shape[:2])
            out = torch.cat([_class_attention(q, k, v, clip_BF), patches], dim=2)
        return self.self_attn.out(out)

    def _across_images(self, x: Tensor, clip_BF: Tensor | None) -> Tensor:
        """A patch attends to its position in all images of its clip, and CLS; 0 for clips of one image."""
        if clip_BF is None:
            return torch.zeros_like(x)
        q, k, v = self.temporal_attn.project(self.temporal_norm(x))
        same_BFG = clip_BF[:, :, None] == clip_BF[:, None]
        scores = torch.einsum("BFPNH,BGPNH->BPNFG", q[:, :, 1:], k[:, :, 1:])
        scores = scores.masked_fill(~same_BFG[:, None, None], torch.finfo(scores.dtype).min)
        class_scores = torch.einsum("BFPNH,BFNH->BPNF", q[:, :, 1:], k[:, :, 0])[..., None]
        scores = torch.cat([class_scores, scores], dim=-1).float() * q.shape[-1] ** -0.5
        weights = scores.softmax(dim=-1).to(v.dtype)
        out = torch.einsum("BPNFG,BGPNH->BFPNH", weights[..., 1:], v[:, :, 1:])
        out = out + torch.einsum("BPNF,BFNH->BFPNH", weights[..., 0], v[:, :, 0])
        out = self.temporal_attn.out(torch.cat([_class_attention(q, k, v, clip_BF), out], dim=2))
        several_BF = same_BFG.sum(dim=-1) > 1
        return torch.where(several_BF[..., None, None], out, torch.zeros_like(out))


def _class_attention(q: Tensor, k: Tensor, v: Tensor, clip_BF: Tensor) -> Tensor:
    """Attention of every image's CLS to itself and all patches of its clip: (B, F, 1, N, H)."""
    B, frames, V = q.shape[:3]

    def spread(y: Tensor) -> Tensor:
        patches = y[:, :, 1:].flatten(1, 2)[:, None].expand(-1, frames, -1, -1, -1)
        return torch.cat([y[:, :, :1], patches], dim=2).flatten(0, 1)

    same_BFG = clip_BF[:, :, None] == clip_BF[:, None]
    mask = torch.cat([same_BFG.new_ones(B, frames, 1), same_BFG.repeat_interleave(V - 1, dim=2)], dim=2)
    out = attend(q[:, :, :1].flatten(0, 1), spread(k), spread(v), mask.flatten(0, 1)[:, None, None])
    return out.unflatten(0, (B, frames))


class VisionEmbeddings(nn.Module):
    """CLIP's patch kernel and position table; a fixed sin-cos table is stored too, but not trained."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        width, side = c["width"], c["patch_size"]
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, side, side, bias=False)
        self.position_embedding = nn.Embedding(1 + (c["image_size"] // side) ** 2, width)
        self.position_embedding.weight.requires_grad_(c["positions"] == "clip")


class VisionBlocks(nn.Module):
    """CLIP's blocks, named as in its files."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.layers = nn.ModuleList(VisionBlock(c) for _ in range(c["depth"]))


class Vision(nn.Module):
    """CLIP's vision transformer (Radford et al., 2021); post_layernorm is applied to all tokens."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        width, eps = c["width"], c["layer_norm_eps"]
        self.embeddings, self.encoder = VisionEmbeddings(c), VisionBlocks(c)
        self.pre_layrnorm, self.post_layernorm = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, patches_BFPX: Tensor, clip_BF: Tensor | None, keep_BFJ: Tensor | None = None) -> Tensor:
        """tokens_BFVD, CLS first, of all patches or of those in `keep_BFJ`."""
        if keep_BFJ is not None:
            patches_BFPX = _take(patches_BFPX, keep_BFJ)
        # A convolution whose stride is its width is a matrix product, here of pixels by row, column, channel.
        kernel_DX = self.embeddings.patch_embedding.weight.permute(0, 2, 3, 1).flatten(1)
        x = F.linear(patches_BFPX.to(kernel_DX.dtype), kernel_DX)
        position_VD = self.embeddings.position_embedding.weight
        x = x + (position_VD[1:] if keep_BFJ is None else position_VD[1:][keep_BFJ])
        classes = (self.embeddings.class_embedding + position_VD[0]).expand(*x.shape[:2], 1, -1)
        x = self.pre_layrnorm(torch.cat([classes.to(x.dtype), x], dim=2))
        for layer in self.encoder.layers:
            x = layer(x, clip_BF)
        return self.post_layernorm(x)


class Cache:
    """KV cache of every layer, in columns; a row attends to the columns that `own_BZ` marks."""

    def __init__(self, c: Mapping[str, Any], rows: int, columns: int, like: Tensor):
        shape = (c["depth"], 2, rows, columns, c["heads"], c["width"] // c["heads"])
        self.kv = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.own_BZ = torch.zeros(rows, columns, dtype=torch.bool, device=like.device)
        self.used = 0

    def append(self, real_BC: Tensor) -> Tensor:
        """Reserve columns for C slots of every row; returns their mask (B, 1, C, Z)."""
        first, self.used = self.used, self.used + real_BC.shape[1]
        self.own_BZ[:, first : self.used] = real_BC
        column_Z = torch.arange(self.used, device=real_BC.device)
        causal_CZ = column_Z[first:, None] >= column_Z[None]
        own_BCZ = self.own_BZ[:, None, : self.used] & causal_CZ
        # Padding attends to itself, so that no softmax is empty.
        return (own_BCZ | (column_Z[first:, None] == column_Z[None]))[:, None]


class DecoderBlock(nn.Module):
    """OPT's pre-LayerNorm block (Zhang et al., 2022)."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        width, eps = c["width"], c["layer_norm_eps"]
        self.self_attn_layer_norm, self.self_attn = nn.LayerNorm(width, eps), Attention(width, c["heads"])
        self.final_layer_norm, self.activation = nn.LayerNorm(width, eps), c["activation"]
        self.fc1, self.fc2 = nn.Linear(width, c["mlp_width"]), nn.Linear(c["mlp_width"], width)
        self.dropout = nn.Dropout(c["dropout"])

    def forward(self, x_BSD: Tensor, mask: Tensor, kv: Tensor | None = None, used: int = 0) -> Tensor:
        """`kv` (2, B, Z, N, H) is the layer's part of a cache, whose keys end at column `used`."""
        q, k, v = self.self_attn.project(self.self_attn_layer_norm(x_BSD))
        if kv is not None:
            kv[0, :, used - k.shape[1] : used], kv[1, :, used - k.shape[1] : used] = k, v
            k, v = kv[:, :, :used]
        x_BSD = x_BSD + self.dropout(self.self_attn.out(attend(q, k, v, mask)))
        hidden = ACTIVATIONS[self.activation](self.fc1(self.final_layer_norm(x_BSD)))
        return x_BSD + self.dropout(self.fc2(hidden))


class Language(nn.Module):
    """OPT on an embedded row; its output head is tied to the token table."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocabulary_size"], c["width"])
        self.embed_positions = nn.Embedding(c["positions"] + POSITION_OFFSET, c["width"])
        self.layers = nn.ModuleList(DecoderBlock(c) for _ in range(c["depth"]))
        self.final_layer_norm = nn.LayerNorm(c["width"], c["layer_norm_eps"])

    def forward(self, x_BSD: Tensor, position_BS: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden states after the final norm; `mask` (B, 1, S, Z) from `causal_mask` or the cache."""
        x_BSD = x_BSD + self.embed_positions(position_BS + POSITION_OFFSET)
        for number, layer in enumerate(self.layers):
            x_BSD = layer(x_BSD, mask, *((cache.kv[number], cache.used) if cache else ()))
        return self.final_layer_norm(x_BSD)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., K), f32."""
        return F.linear(hidden, self.embed_tokens.weight).float()


def causal_mask(segment_BS: Tensor) -> Tensor:
    """(B, 1, S, S): a slot attends to itself and the earlier slots of its sample."""
    S = segment_BS.shape[1]
    causal_SS = torch.ones(S, S, dtype=torch.bool, device=segment_BS.device).tril()
    return (causal_SS & (segment_BS[:, :, None] == segment_BS[:, None]))[:, None]


class Mask(NamedTuple):
    """Visible and hidden patches: int64 indices, both ascending, and the index of patch p in [keep, hide]."""

    keep_BFJ: Tensor
    hide_BFI: Tensor
    restore_BFP: Tensor


def random_mask(clip_BF: Tensor, patches: int, mask_ratio: float, generator: torch.Generator | None = None) -> Mask:
    """A random mask for every image, the same for images of one clip."""
    visible = max(1, int(patches * (1.0 - mask_ratio) + 1e-6))
    noise_BFP = torch.rand(*clip_BF.shape, patches, generator=generator, device=clip_BF.device)
    first_BF = (clip_BF[:, :, None] == clip_BF[:, None]).int().argmax(dim=-1)  # the first image of each clip
    order_BFP = _take(noise_BFP, first_BF).argsort(dim=-1)
    keep, hide = order_BFP[..., :visible].sort(dim=-1)[0], order_BFP[..., visible:].sort(dim=-1)[0]
    return Mask(keep, hide, torch.cat([keep, hide], dim=-1).argsort(dim=-1))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Entries of x (*leading, n, *rest) by an index (*leading, m): (*leading, m, *rest)."""
    rest = x.shape[index.dim() :]
    return x.gather(index.dim() - 1, index[(..., *(None,) * len(rest))].expand(*index.shape, *rest))


class MaeDecoder(nn.Module):
    """Reconstructs the hidden patches from the visible tokens (He et al., 2022)."""

    positions: Tensor

    def __init__(self, c: Mapping[str, Any], vision: Mapping[str, Any]):
        super().__init__()
        width, side = c["width"], vision["patch_size"]
        self.input = nn.Linear(vision["width"], width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(VisionBlock(c) for _ in range(c["depth"]))
        self.norm = nn.LayerNorm(width, c["layer_norm_eps"])
        self.prediction = nn.Linear(width, side * side * 3)
        table = sincos_positions(vision["image_size"] // side, width)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, tokens_BFVD: Tensor, mask: Mask) -> Tensor:
        """predicted_BFIX in f32: normalised pixels of the hidden patches, in the order of `mask.hide_BFI`."""
        x = self.input(tokens_BFVD)
        hidden = self.mask_token.to(x.dtype).expand(*mask.hide_BFI.shape, -1)
        image = _take(torch.cat([x[:, :, 1:], hidden], dim=2), mask.restore_BFP)
        x = torch.cat([x[:, :, :1], image], dim=2) + self.positions.to(x.dtype)
        for layer in self.layers:
            x = layer(x, None)
        return self.prediction(_take(self.norm(x)[:, :, 1:], mask.hide_BFI)).float()


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (1 + grid * grid, width), columns first, zeros for CLS."""
    frequency = 1.0 / 10000 ** (np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    angles = [coordinate.reshape(-1, 1) * frequency for coordinate in (columns, rows)]
    table = np.concatenate([function(angle) for angle in angles for function in (np.sin, np.cos)], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, width)), table]).astype(np.float32))


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
            predicted, pixels = self.mae(tokens_BFVD, mask), _take(patches_BFPX, mask.hide_BFI)
        if visual_tokens == "all" or tokens_BFVD is None:
            tokens_BFVD = self.vision(patches_BFPX, clip_BF)
        classes_BY = self.classify(tokens_BFVD, clip_BF) if self.classifier else None
        visual_BGD = self.connector(tokens_BFVD).flatten(1, 2)
        visual_BS = batch["visual_BS"].long()
        x_BSD = torch.where(visual_BS[..., None] >= 0, _take(visual_BGD, visual_BS.clamp(min=0)).float(),
                            self.language.embed_tokens(batch["token_BS"].long()).float())
        dtype = self.language.embed_tokens.weight.dtype
        hidden_BSD = self.language(x_BSD.to(dtype), batch["position_BS"].long(), causal_mask(batch["segment_BS"]))
        logits_BTK = self.language.logits(_take(hidden_BSD, batch["slot_BT"].long()))
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


# ---------------------------------------------------------------------------------------------------------------------
# The losses (eq. 2-5)


def losses(output: Output, batch: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The losses of a batch and their total, in the form of `config` (agent.config["loss"]).

        mean: sum over domains of  token * (weighted mean over language and action targets) + mae * (mean of patches)
        eq5:  mean over samples of (L_lang + L_mae + L_act) / (|W| + sum_t (|V_t| + |A_t|))

    A class head adds the mean cross-entropy of the labels, by domain in `mean`, over all in `eq5`.

    Returns:
        `language`, `action` and `label` as means over their targets in nats, `mae` as mean squared error of a hidden
        patch, and `total`, to minimise.
    """
    language_BT, action_BT = batch["language_weight_BT"], batch["action_weight_BT"]
    frame_BF = torch.where(batch["clip_BF"] >= 0, batch["frame_weight_BF"], 0.0)
    target_BT = torch.where(language_BT + action_BT > 0, batch["target_BT"], 0).long()
    nll_BT = F.cross_entropy(output.logits_BTK.transpose(1, 2), target_BT, reduction="none")
    nll_BT = torch.where(language_BT + action_BT > 0, nll_BT, 0.0)
    if output.predicted_BFIX is None or output.pixels_BFIX is None:
        error_BF, patches, values = torch.zeros_like(frame_BF), 1, 1
    else:
        square_BFIX = (output.predicted_BFIX - output.pixels_BFIX).square()
        error_BF, (patches, values) = square_BFIX.mean(-1).sum(-1), square_BFIX.shape[-2:]
    label_B, nll_B = torch.zeros_like(frame_BF[:, 0]), torch.zeros_like(frame_BF[:, 0])
    if output.classes_BY is not None:
        label_B = ((batch["label_B"] >= 0) & (batch["clip_BF"][:, 0] >= 0)).float()
        nll_B = F.cross_entropy(output.classes_BY, batch["label_B"].long().clamp(min=0), reduction="none")
    if config["form"] == "eq5":
        token_BT = nll_BT * (config["language"] * language_BT + config["action"] * action_BT) / batch["denominator_BT"]
        mae_BF = config["mae"] * values * error_BF * frame_BF / batch["denominator_BF"]
        samples = ((batch["segment_BS"] > 0) & (batch["position_BS"] == 0)).sum().clamp(min=1)
        total = (token_BT.sum() + mae_BF.sum()) / samples + config["label"] * _mean(nll_B, label_B)
    else:
        total = nll_BT.new_zeros(())
        for domain in torch.cat([batch["domain_BT"].flatten(), batch["domain_BF"].flatten()]).unique().tolist():
            here_BT, here_BF = batch["domain_BT"] == domain, batch["domain_BF"] == domain
            weight_BT = (config["language"] * language_BT + config["action"] * action_BT) * here_BT
            total = total + config["token"] * _mean(nll_BT, weight_BT)
            total = total + config["mae"] * _mean(error_BF / patches, frame_BF * here_BF)
            total = total + config["label"] * _mean(nll_B, label_B * here_BF[:, 0])
    return {"language": _mean(nll_BT, language_BT), "action": _mean(nll_BT, action_BT), "label": _mean(nll_B, label_B),
            "mae": _mean(error_BF / patches, frame_BF), "total": total}


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; 0 without any weight."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)


def parameter_groups(agent: Agent, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for torch.optim.AdamW: no decay of biases, norms, single tokens and position tables."""
    named = [(p, p.dim() > 1 and "position" not in name) for name, p in agent.named_parameters() if p.requires_grad]
    decayed, rest = ([p for p, shrinks in named if shrinks is wanted] for wanted in (True, False))
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


# ---------------------------------------------------------------------------------------------------------------------
# Actions and states: values in the environment's units <-> ids


class Codec:
    """One ActionSpec or StateSpec of agent.json: parts between delimiters, and the automaton of legal ids."""

    def __init__(self, spec: Mapping[str, Any]):
        self.name, self.groups, self.fields = spec["name"], spec["groups"], spec["fields"]
        self.terminal: list[int] = spec["terminal"]
        self.start, self.accept = spec["automaton"]["start"], spec["automaton"]["accept"]
        # By state: {id: the state after it}.
        self.ways = [dict(zip(*way, strict=True)) for way in spec["automaton"]["ways"]]

    def encode(self, values: Mapping[str, Any]) -> list[int]:
        """Ids of one step's values, delimiters included; numbers out of bounds are clipped.

        Raises:
            ValueError: a key is missing, has another shape, or holds NaN or an unknown choice.
        """
        if self.terminal and values.get("terminal", False):
            return list(self.terminal)
        ids: list[int] = []
        for group in self.groups:
            ids.append(group["start"])
            for part in group["parts"]:
                key, index = part["key"], part["index"]
                shape = tuple(self.fields[key]["shape"])
                if key not in values or np.shape(values[key]) != shape:
                    raise ValueError(f"{self.name}: {key} is missing or not of shape {shape}; found {sorted(values)}")
                tokens = [part["ids"][s] for s in symbols(part, np.asarray(values[key]).tolist() if index is None
                                                          else float(values[key][index]))]
                ids += sorted(tokens) if part["part"] == "buttons" else tokens
            ids.append(group["end"])
        return ids

    def decode(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        """Values at the bin centres, within the bounds, of a complete legal sequence; {"terminal": True} at the end."""
        if self.terminal and list(ids) == self.terminal:
            return {"terminal": np.array(True)}
        values = {key: np.zeros(field["shape"], field["dtype"]) for key, field in self.fields.items()}
        position = 0
        for group in self.groups:
            position += 1
            for part in group["parts"]:
                own = {token: symbol for symbol, token in enumerate(part["ids"])}
                longest = 1 if part["part"] in ("bins", "choice") else len(own)
                numbers: list[int] = []
                while len(numbers) < longest and ids[position] in own:
                    numbers.append(own[ids[position]])
                    position += 1
                values[part["key"]][... if part["index"] is None else part["index"]] = value(part, numbers)
            position += 1
        return values

    def first(self) -> list[int]:
        """The legal sequence that takes the first id in every state."""
        ids, state = [], self.start
        while state != self.accept:
            token = next(iter(self.ways[state]))
            ids, state = [*ids, token], self.ways[state][token]
        return ids

    def forced(self, state: int) -> tuple[list[int], int]:
        """The ids that are the only legal ones from here, and the state after them."""
        ids: list[int] = []
        while len(self.ways[state]) == 1:
            [(token, state)] = self.ways[state].items()
            ids.append(token)
        return ids, state


def symbols(part: Mapping[str, Any], given: Any) -> list[int]:
    """Indices of the tokens that encode the value of a part."""
    kind = part["part"]
    if np.isnan(np.asarray(given, np.float64)).any():
        raise ValueError(f"{part['key']}: found nan, expected a number")
    if kind == "bins":
        low, high, last = part["low"], part["high"], part["count"] - 1
        if low < given < high and given != greatest(high):
            return [min(int((given - low) / ((high - low) / last)), last - 1)]
        return [0 if given <= low else last]
    if kind == "choice":
        numbers = np.asarray(part["values"] or range(len(part["ids"])), np.float32)
        [found] = np.nonzero(numbers == np.float32(given))
        if not len(found):
            raise ValueError(f"{part['key']}: found {given}, expected one of {numbers.tolist()}")
        return [int(found[0])]
    if kind == "buttons":
        return [i for i, down in enumerate(given) if down]
    if kind == "camera":
        degrees = [int(max(part["low"], min(part["high"], turn))) for turn in given]
        span = part["high"] - part["low"] + 1
        return [degrees[0] - part["low"], span + degrees[1] - part["low"]] if any(degrees) else []
    length, turn = math.hypot(*given), math.atan2(given[1], given[0]) / math.tau % 1.0
    if length <= part["dead_zone"]:
        return []
    share = (min(length, 1.0) - part["dead_zone"]) / (1 - part["dead_zone"])
    return [int(turn * part["rotations"]) % part["rotations"],
            part["rotations"] + min(int(share * part["magnitudes"]), part["magnitudes"] - 1)]


def greatest(high: float) -> float:
    """The greatest float32 that is not above `high`."""
    rounded = np.float32(high)
    return float(rounded if float(rounded) <= high else np.nextafter(rounded, np.float32(-np.inf)))


def value(part: Mapping[str, Any], numbers: Sequence[int]) -> Any:
    """The value that a part's tokens decode to: the centre of a bin, clipped to the part's bounds."""
    kind = part["part"]
    if kind == "bins":
        low, high = part["low"], part["high"]
        centre = low + (numbers[0] + 0.5) * ((high - low) / (part["count"] - 1))
        return min(max(centre, -greatest(-low)), greatest(high))
    if kind == "choice":
        return part["values"][numbers[0]] if part["values"] else numbers[0]
    if kind == "buttons":
        return [i in numbers for i in range(len(part["names"]))]
    if not numbers:
        return [0.0, 0.0]
    if kind == "camera":
        span = part["high"] - part["low"] + 1
        degrees = [numbers[0] + part["low"], numbers[1] - span + part["low"]]
        return [min(max(d + 0.5 * ((d > 0) - (d < 0)), part["low"]), part["high"]) for d in degrees]
    angle = (numbers[0] + 0.5) * math.tau / part["rotations"]
    share = (numbers[1] - part["rotations"] + 0.5) / part["magnitudes"]
    length = part["dead_zone"] + share * (1 - part["dead_zone"])
    return [length * math.cos(angle), length * math.sin(angle)]


# ---------------------------------------------------------------------------------------------------------------------
# A row: instruction, then images, states and actions


@dataclass
class Step:
    """One time step."""

    images: Sequence[np.ndarray]  # uint8 (size, size, 3), one a camera
    state_ids: Sequence[int] = ()
    action_ids: Sequence[int] = ()


@dataclass
class Domain:
    """How one data set maps to tokens, from agent.json."""

    name: str
    window: int  # steps of a sample
    max_text: int  # tokens of an instruction or prompt, </s> included
    first_position: int  # of the first step; 0: right after the instruction
    video: bool  # the images of a camera form one clip
    image_size: int
    cameras: Sequence[str]  # names, in the order of a step's images
    actions: Codec | None  # None in the layouts "answer" and "label"
    state: Codec | None
    tokenizer: Tokenizer
    layout: str = "actions"  # "actions", "answer" (a text after the images) or "label" (a class of the clip)
    max_answer: int = 0  # tokens of an answer, </s> included
    text_ids_end: int = 0  # the ids from here on are those of actions and states
    silent_ids: Sequence[int] = ()  # text ids that decode to no text
    actions_per_image: int = 1  # k: only every k-th step of a sample has images and state

    @classmethod
    def load(cls, folder: str | Path, name: str = "", layout: str = "") -> Domain:
        """The domain of an exported folder.

        Args:
            folder: with agent.json.
            name: may be empty if there is only one of the layout.
            layout: that the domain must have; "": any, and "actions" for an empty name.

        Raises:
            ValueError: there is no such domain, or `name` is empty and there are several; names those that fit.
        """
        folder = Path(folder)
        description = json.loads((folder / "agent.json").read_text(encoding="utf-8"))
        domains = {**description["acting"], **description.get("prompted", {})}
        layouts = {key: fields.get("layout", "actions") for key, fields in domains.items()}
        wanted = layout or ("" if name else "actions")
        fitting = [key for key, found in layouts.items() if wanted in ("", found)]
        if not name and len(fitting) == 1:
            [name] = fitting
        if name in layouts and name not in fitting:
            raise ValueError(f"domain {name!r} of {folder} has the layout {layouts[name]!r}, which predicts no "
                             f"{PREDICTED[wanted]}; expected a domain of the layout {wanted!r}: "
                             f"{', '.join(fitting) or 'there is none'}")
        if not fitting:
            found = ", ".join(f"{key} ({of_domain!r})" for key, of_domain in layouts.items()) or "no domains"
            raise ValueError(f"{folder} has no domain of the layout {wanted!r}; found {found}")
        if name not in fitting:
            raise ValueError(f"domain {name!r}: {folder} has {', '.join(fitting)}; name one")
        fields = {"actions": None, "state": None, **domains[name]}
        actions, state = (fields.pop(key) for key in ("actions", "state"))
        tokenizer = Tokenizer.from_file(str(folder / "language" / "tokenizer.json"))
        return cls(name=name, actions=Codec(actions) if actions else None, state=Codec(state) if state else None,
                   tokenizer=tokenizer, **fields)

    def text_ids(self, instruction: str) -> list[int]:
        """</s> and the instruction or prompt; ValueError if longer than `max_text`."""
        ids = [EOS, *self.tokenizer.encode(instruction, add_special_tokens=False).ids]
        if len(ids) > self.max_text:
            raise ValueError(f"domain {self.name!r}: {instruction!r} has {len(ids)} tokens with </s>, expected at most "
                             f"{self.max_text}")
        return ids

    def answer_ids(self, answer: str) -> list[int]:
        """The answer and </s>; ValueError if longer than `max_answer`."""
        ids = [*self.tokenizer.encode(answer, add_special_tokens=False).ids, EOS]
        if len(ids) > self.max_answer:
            raise ValueError(f"domain {self.name!r}: the answer {answer!r} has {len(ids)} tokens with </s>, expected "
                             f"at most {self.max_answer}")
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""
        return self.tokenizer.decode([token for token in ids if token not in self.silent_ids], skip_special_tokens=True)

    def step_images(self, given: Any) -> list[np.ndarray]:
        """The images of one step, in the cameras' order and resized for the encoder.

        Args:
            given: an image, or one of each camera: a sequence in their order or a mapping by their names.

        Raises:
            ValueError: another number of images, or an image of another dtype or shape.
        """
        if isinstance(given, np.ndarray) and given.ndim == 3:
            given = [given]
        if isinstance(given, Mapping):
            given = [given[name] for name in self.cameras if name in given]
        if len(given) != len(self.cameras):
            raise ValueError(f"found {len(given)} images, expected one of each camera: {', '.join(self.cameras)}")
        return [self.image(image) for image in given]

    def clip_images(self, given: Any) -> list[list[np.ndarray]]:
        """The images of a clip's steps, as `step_images`.

        Args:
            given: one step, or a sequence of 1 to `window` of them.

        Raises:
            ValueError: another number of steps; or as `step_images`.
        """
        if isinstance(given, (str, bytes)) or not isinstance(given, (Mapping, Sequence, np.ndarray)):
            raise ValueError(f"domain {self.name!r}: found a {type(given).__name__}, expected an image uint8 (height, "
                             f"width, 3) or a sequence of 1 to {self.window} of them")
        several = len(self.cameras) > 1
        if isinstance(given, Mapping) or _is_image(given) or (several and all(map(_is_image, given))):
            given = [given]
        if not 1 <= len(given) <= self.window:
            raise ValueError(f"domain {self.name!r}: found a clip of {len(given)} images"
                             f"{' of each camera' if several else ''}, expected 1 to {self.window}")
        return [self.step_images(step) for step in given]

    def image(self, image: np.ndarray) -> np.ndarray:
        """The image resized for the encoder: bilinear, antialiased, no crop; ValueError for another dtype or shape."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
            raise ValueError(f"domain {self.name!r}: found {found}, expected images uint8 (height, width, 3)")
        size = (self.image_size, self.image_size)
        if image.shape[:2] == size:
            return image
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _is_image(given: Any) -> bool:
    return isinstance(given, np.ndarray) and given.ndim == 3


def lay_out(domain: Domain, samples: Sequence[tuple[Any, ...]], patches: int) -> dict[str, Tensor]:
    """A batch of one sample a row, for training.

    Args:
        domain: of all samples.
        samples: (text ids, steps) of each; in the layout "answer" (text ids, steps, answer ids), in the layout "label"
            (text ids, steps, class).
        patches: P.

    Returns:
        The fields of a batch: frames_BFHWC, frame_weight_BF, clip_BF, token_BS, visual_BS (index f * V + v of a visual
        token, -1 for a text token), segment_BS, position_BS, slot_BT, target_BT, language_weight_BT, action_weight_BT,
        denominator_BT, denominator_BF, domain_BF, domain_BT, label_B (-1: none). All text and action ids are targets;
        after a prompt only the answer's are.
    """
    rows = []
    for text, steps, *predicted in samples:
        texts = len(text) - 1 if domain.layout == "actions" else 0  # targets of the text
        answer = list(predicted[0]) if domain.layout == "answer" else []
        tokens, visual, slots, targets = list(text), [-1] * len(text), list(range(texts)), list(text[1 : 1 + texts])
        frames: list[np.ndarray] = []
        clips: list[int] = []
        for number, step in enumerate(steps):
            for camera, image in enumerate(step.images):
                first = 1 if domain.video and number else 0  # a clip has one CLS
                places = range(len(frames) * (1 + patches) + first, (len(frames) + 1) * (1 + patches))
                tokens, visual = tokens + [0] * len(places), visual + list(places)
                clips.append(camera if domain.video else len(frames))
                frames.append(image)
            tokens, visual = tokens + list(step.state_ids), visual + [-1] * len(step.state_ids)
            slots += range(len(tokens) - 1, len(tokens) - 1 + len(step.action_ids))
            targets += step.action_ids
            tokens, visual = tokens + list(step.action_ids), visual + [-1] * len(step.action_ids)
        slots += range(len(tokens) - 1, len(tokens) - 1 + len(answer))
        targets += answer
        tokens, visual = tokens + answer, visual + [-1] * len(answer)
        language_T = np.full(len(targets), domain.layout == "answer")
        language_T[:texts] = True
        denominator = len(targets) + patches * len(frames)
        gap = domain.first_position - len(text) if domain.first_position else 0
        rows.append({"frames_BFHWC": np.stack(frames), "frame_weight_BF": np.ones(len(frames), np.float32),
                     "clip_BF": clips, "token_BS": tokens, "visual_BS": visual, "segment_BS": [1] * len(tokens),
                     "position_BS": [i if i < len(text) else i + gap for i in range(len(tokens))],
                     "slot_BT": slots, "target_BT": targets,
                     "language_weight_BT": language_T.astype(np.float32),
                     "action_weight_BT": (~language_T).astype(np.float32),
                     "denominator_BT": np.full(len(targets), denominator, np.float32),
                     "denominator_BF": np.full(len(frames), denominator, np.float32),
                     "domain_BF": [0] * len(frames), "domain_BT": [0] * len(targets)})  # one domain
    padding = {"clip_BF": -1, "visual_BS": -1, "denominator_BT": 1, "denominator_BF": 1}
    batch = {}
    for name in rows[0]:
        arrays = [np.asarray(row[name], None if len(row[name]) else np.int64) for row in rows]
        full = np.full((len(rows), max(map(len, arrays)), *arrays[0].shape[1:]), padding.get(name, 0), arrays[0].dtype)
        for place, array in zip(full, arrays, strict=True):
            place[: len(array)] = array
        batch[name] = torch.from_numpy(full)
    batch["label_B"] = torch.tensor([sample[2] if domain.layout == "label" else -1 for sample in samples])
    return batch


# ---------------------------------------------------------------------------------------------------------------------
# Acting, answering, classifying


@dataclass
class Episode:
    """History of one environment: its last steps, with encoded images and actions."""

    past: deque[tuple[list[Tensor], Step]]


@dataclass(frozen=True)
class GeneratedText:
    """An answer of the model."""

    text: str
    ids: list[int]  # without the </s> that ended it
    log_probability: float  # in nats, among the text ids, at temperature 1; of all generated ids, the final </s> too
    complete: bool  # it ended by </s>, not by `max_tokens`


@dataclass(frozen=True)
class Classification:
    """The class of a clip."""

    label: int  # the most probable class
    probabilities: np.ndarray  # f32 (classes,)


class Policy:
    """Acts in any number of environments at once, each with its own history; answers prompts and classifies clips.

    The window slides: every step prefills the row of the last images and actions from stored encodings, then decodes
    the action id by id with a KV cache, among the ids that the ActionSpec allows.
    """

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
        self.agent, self.folder = agent or Agent.load(folder), Path(folder)
        prompted = list(self.agent.description.get("prompted", {}))
        if not domain and not self.agent.description["acting"] and len(prompted) == 1:
            [domain] = prompted
        only_prompted = len(prompted) > 1 and not self.agent.description["acting"]
        self._domain = Domain.load(folder, domain) if domain or not only_prompted else None
        self.temperature, self._random = temperature, np.random.default_rng(seed)
        self._episodes: dict[Any, Episode] = {}

    @property
    def domain(self) -> Domain:
        """The domain that was named, or the only one to act in, or the only one; else ValueError."""
        if self._domain is None:
            raise ValueError(f"{self.folder} has no domain of the layout 'actions', but "
                             f"{', '.join(self.agent.description['prompted'])}, and none was named; use `say` or "
                             "`classify`, or name one")
        return self._domain

    def _of_layout(self, name: str, layout: str) -> Domain:
        """The domain to predict in: the one named here or at the start, or the only one of the layout."""
        own = self._domain
        if own is not None and own.layout == layout and name in ("", own.name):
            return own
        return Domain.load(self.folder, name, layout)

    def reset(self, env_ids: Sequence[Any]) -> None:
        """Start new episodes."""
        for env_id in env_ids:
            images = self.domain.window // self.domain.actions_per_image
            self._episodes[env_id] = Episode(deque(maxlen=images - 1))

    def act(self, images: Sequence[Any], instructions: Sequence[str], env_ids: Sequence[Any],
            states: Sequence[Mapping[str, Any]] | None = None) -> list[Any]:
        """The next action of each episode, which is assumed to be executed.

        If the domain has several actions per image: a list of them for each episode, in order; it ends with the action
        that ends the episode.

        Args:
            images: n uint8 (height, width, 3), or n sequences or mappings of one such image for each camera.
            instructions: n texts.
            env_ids: n different ids; an unknown id starts an episode.
            states: n mappings of the StateSpec's values; None if the domain has no StateSpec.

        Raises:
            ValueError: a domain without actions, sequences of unequal length, duplicate env_ids, a wrong observation,
                or logits that are not finite.
        """
        codec = self._codec()
        n = len(env_ids)
        if not len(images) == len(instructions) == n or (states is not None and len(states) != n):
            raise ValueError(f"found {len(images)} images, {len(instructions)} instructions, {n} env_ids"
                             f"{'' if states is None else f' and {len(states)} states'}, expected one each")
        if len(set(env_ids)) != n:
            raise ValueError(f"duplicate env_ids: {list(env_ids)}")
        if (states is None) != (self.domain.state is None):
            raise ValueError(f"domain {self.domain.name!r} {'has no' if states is not None else 'needs a'} state for "
                             "each environment")
        if not n:
            return []
        steps = self.observe(images, env_ids, states)
        texts = [self.domain.text_ids(instruction) for instruction in instructions]
        actions: list[list[dict[str, np.ndarray]]] = [[] for _ in env_ids]
        for _ in range(self.domain.actions_per_image):
            found = self.decode(env_ids, texts, steps, lambda _, logits: self._choose(logits))
            for i, ids in enumerate(found):
                tokens, step = steps[i]
                steps[i] = tokens, Step(step.images, step.state_ids, [*step.action_ids, *ids])
                if not actions[i] or "terminal" not in actions[i][-1]:
                    actions[i].append(codec.decode(ids))
        for env_id, (tokens, step) in zip(env_ids, steps, strict=True):
            self.remember(env_id, tokens, step)
        return actions if self.domain.actions_per_image > 1 else [one for [one] in actions]

    def _codec(self) -> Codec:
        """The codec of the domain's actions; ValueError if it has none."""
        if self.domain.actions is None:
            acting = ", ".join(self.agent.description["acting"]) or "there is none"
            raise ValueError(f"domain {self.domain.name!r} of {self.folder} has the layout {self.domain.layout!r}, "
                             f"which predicts no actions; expected a domain of the layout 'actions': {acting}")
        return self.domain.actions

    def remember(self, env_id: Any, tokens: list[Tensor], step: Step) -> None:
        """Append an executed step to the history."""
        self._episodes[env_id].past.append((tokens, step))

    def observe(self, images: Sequence[Any], env_ids: Sequence[Any], states: Sequence[Mapping[str, Any]] | None
                ) -> list[tuple[list[Tensor], Step]]:
        """Encode the observations: the visual tokens of each camera, and the step without its action."""
        self.reset([env_id for env_id in env_ids if env_id not in self._episodes])
        prepared = [self.domain.step_images(given) for given in images]
        encoded = [[]] * len(prepared) if self.domain.video else self._encode(prepared)
        steps = []
        for i, cameras in enumerate(prepared):
            state = self.domain.state.encode(states[i]) if self.domain.state and states is not None else []
            steps.append((encoded[i], Step(cameras, state)))
        return steps

    @torch.inference_mode()
    def decode(self, env_ids: Sequence[Any], texts: Sequence[Sequence[int]], steps: Sequence[tuple[list[Tensor], Step]],
               choose: Any) -> list[list[int]]:
        """The ids of each action, after those in `steps`; `choose(row, {id: logit})` returns one of the legal ids."""
        codec, language = self._codec(), self.agent.language
        pending, where = map(list, zip(*[codec.forced(codec.start)] * len(env_ids), strict=True))
        ids = [list(first) for first in pending]
        if all(state == codec.accept for state in where):
            return ids
        rows = [self._row(self._episodes[env_id], text, step, first)
                for env_id, text, step, first in zip(env_ids, texts, steps, pending, strict=True)]
        x_BSD, position_BS, real_BC = _stacked(rows)
        next_B = position_BS.max(dim=1)[0] + 1
        longest = len(codec.ways)  # an action has at most as many ids as its automaton has states
        cache = Cache(self.agent.config["model"]["language"], len(rows), x_BSD.shape[1] + 2 * longest, x_BSD)
        while True:
            hidden = language(x_BSD, position_BS, cache.append(real_BC), cache)
            last_BD = hidden[torch.arange(len(rows)), real_BC.sum(dim=1).clamp(min=1) - 1]
            logits_BK = language.logits(last_BD).cpu()
            for i, state in enumerate(where):
                pending[i] = []
                if state != codec.accept:
                    legal = codec.ways[state]
                    token = choose(i, {token: float(logits_BK[i, token]) for token in legal})
                    forced, where[i] = codec.forced(legal[token])
                    pending[i] = [token, *forced]
                    ids[i] += pending[i]
                    if where[i] == codec.accept:
                        pending[i] = []
            width = max(map(len, pending))
            if not width:
                return ids
            chunk_BC = torch.tensor([more + [0] * (width - len(more)) for more in pending], device=next_B.device)
            real_BC = torch.arange(width) < torch.tensor([len(more) for more in pending])[:, None]
            real_BC = real_BC.to(next_B.device)
            position_BS = next_B[:, None] + torch.arange(width, device=next_B.device)
            position_BS = torch.where(real_BC, position_BS, 0)
            next_B = next_B + real_BC.sum(dim=1)
            x_BSD = language.embed_tokens(chunk_BC)

    def _encode(self, images: Sequence[Sequence[np.ndarray]]) -> list[list[Tensor]]:
        """Visual tokens (V, D) of each camera of each environment; every image is its own clip."""
        with torch.inference_mode():
            frames_BFHWC = torch.from_numpy(np.asarray(images)).to(self.agent.scale.device)
            clip_BF = torch.arange(frames_BFHWC.shape[1], device=frames_BFHWC.device).expand(frames_BFHWC.shape[:2])
            return [list(row) for row in self.agent.encode(frames_BFHWC, clip_BF)]

    def _row(self, episode: Episode, text: Sequence[int], now: tuple[list[Tensor], Step], first_ids: Sequence[int]
             ) -> tuple[Tensor, Tensor]:
        """The embedded row (S, D) of an episode up to the first ids of its next action, and its positions (S,)."""
        window = [*episode.past, now]
        visual = self._clip([step for _, step in window]) if self.domain.video else [tokens for tokens, _ in window]
        ids = [[*step.state_ids, *step.action_ids, *(first_ids if step is now[1] else ())] for _, step in window]
        return self._embedded(self.domain, text, visual, ids)

    def _embedded(self, domain: Domain, text: Sequence[int], visual: Sequence[Sequence[Tensor]],
                  ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The row (S, D) of a text, and of each step's visual tokens by camera and its ids; its positions (S,)."""
        device, embed = self.agent.scale.device, self.agent.language.embed_tokens
        pieces = [embed(torch.tensor(text, device=device))]
        for tokens, of_step in zip(visual, ids, strict=True):
            pieces += [*tokens, *([embed(torch.tensor(of_step, device=device))] if of_step else [])]
        x_SD = torch.cat(pieces)
        position_S = torch.arange(len(x_SD), device=device)
        if domain.first_position:
            position_S[len(text) :] += domain.first_position - len(text)
        return x_SD, position_S

    def _clip(self, steps: Sequence[Step]) -> list[list[Tensor]]:
        """Visual tokens by step and camera of a video model, which encodes the whole window; one CLS a camera."""
        images = np.stack([image for step in steps for image in step.images])
        cameras = len(steps[0].images)
        clip = torch.arange(cameras, device=self.agent.scale.device).repeat(len(steps))
        tokens = self.agent.encode(torch.from_numpy(images)[None].to(clip.device), clip[None])[0]
        return [[tokens[number * cameras + camera, 1 if number else 0 :] for camera in range(cameras)]
                for number in range(len(steps))]

    def _choose(self, logits: Mapping[int, float]) -> int:
        """The best id, or a sample from the softmax (Gumbel-max)."""
        tokens, found = list(logits), np.array(list(logits.values()))
        _check_finite(found)
        if self.temperature:
            found = found / self.temperature + self._random.gumbel(size=found.shape)
        return tokens[int(np.argmax(found))]

    def say(self, images: Sequence[Any], prompts: Sequence[str], *, domain: str = "", max_tokens: int = 0,
            temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> list[GeneratedText]:
        """Answer each prompt about its images; no history is read or written.

        Args:
            images: for each prompt an image uint8 (height, width, 3), or a sequence of 1 to `window` of them; with
                several cameras, a mapping by their names or a tuple in their order in place of an image.
            prompts: texts.
            domain: of the layout "answer"; may be empty if the policy has it, or if there is only one.
            max_tokens: of an answer, </s> included; 0: the domain's `max_answer`, which is the most.
            temperature: of sampling; 0: the most probable id.
            top_p: sample among the fewest most probable ids whose probabilities reach this sum; 1: all.
            seed: of sampling; what is drawn depends on it and on the prompt's number alone.

        Returns:
            One text for each prompt. Ids of actions and states are never generated.

        Raises:
            ValueError: a domain without text, another number of images than prompts, a prompt that is too long, a
                wrong clip, a setting out of range, or logits that are not finite.
        """
        chosen = self._of_layout(domain, "answer")
        _check_sampling(chosen, temperature, top_p, max_tokens)
        if isinstance(prompts, str) or len(images) != len(prompts):
            found = "one text" if isinstance(prompts, str) else f"{len(prompts)} prompts"
            raise ValueError(f"found {len(images)} clips and {found}, expected a clip (an image or several) for each "
                             "prompt: say([clip], [prompt])")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise ValueError(f"domain {chosen.name!r}: found the prompt {prompt!r}, expected a text")
        if not len(prompts):
            return []
        texts = [chosen.text_ids(prompt) for prompt in prompts]
        clips = [chosen.clip_images(given) for given in images]
        random = [np.random.default_rng([seed, number]) for number in range(len(prompts))]
        log_probabilities = [0.0] * len(prompts)

        def choose(row: int, logits_K: np.ndarray) -> int:
            _check_finite(logits_K)
            log_K = logits_K - logits_K.max()
            log_K -= np.log(np.exp(log_K).sum())
            token = sampled(log_K, temperature, top_p, random[row])
            log_probabilities[row] += float(log_K[token])
            return token

        said = []
        for ids, log_probability in zip(self.generate(chosen, texts, clips, max_tokens or chosen.max_answer, choose),
                                        log_probabilities, strict=True):
            complete = ids[-1] == EOS
            ids = ids[:-1] if complete else ids
            said.append(GeneratedText(chosen.text(ids), ids, log_probability, complete))
        return said

    @torch.inference_mode()
    def generate(self, domain: Domain, texts: Sequence[Sequence[int]], clips: Sequence[Sequence[Sequence[np.ndarray]]],
                 limit: int, choose: Any) -> list[list[int]]:
        """The ids after each prompt and clip, up to </s> or `limit` of them.

        Args:
            domain: of the layout "answer".
            texts: ids of the prompts.
            clips: prepared images by step and camera.
            limit: ids of an answer at most.
            choose: `choose(row, logits_K)` returns the next id by the logits of the text ids, f64.
        """
        language = self.agent.language
        x_BSD, position_BS, real_BC = _stacked(self._prompt_rows(domain, texts, clips))
        next_B = position_BS.max(dim=1)[0]
        cache = Cache(self.agent.config["model"]["language"], len(texts), x_BSD.shape[1] + limit - 1, x_BSD)
        ids: list[list[int]] = [[] for _ in texts]
        going = [True] * len(texts)
        while True:
            hidden = language(x_BSD, position_BS, cache.append(real_BC), cache)
            last_BD = hidden[torch.arange(len(texts)), real_BC.sum(dim=1).clamp(min=1) - 1]
            logits_BK = language.logits(last_BD)[:, : domain.text_ids_end].double().cpu().numpy()
            for i, found in enumerate(ids):
                if going[i]:
                    found.append(choose(i, logits_BK[i]))
                    going[i] = found[-1] != EOS and len(found) < limit
            if not any(going):
                return ids
            real_BC = torch.tensor(going, device=next_B.device)[:, None]
            next_B = next_B + 1
            position_BS = torch.where(real_BC, next_B[:, None], 0)
            x_BSD = language.embed_tokens(torch.tensor([[found[-1]] for found in ids], device=next_B.device))

    def _prompt_rows(self, domain: Domain, texts: Sequence[Sequence[int]],
                     clips: Sequence[Sequence[Sequence[np.ndarray]]]) -> list[tuple[Tensor, Tensor]]:
        """The embedded row of each prompt and clip, and its positions."""
        tokens_BFVD = self.agent.connector(self._vision_tokens(domain, clips)[0])
        rows = []
        for text, clip, tokens_FVD in zip(texts, clips, tokens_BFVD, strict=True):
            cameras = len(clip[0])
            visual = [[tokens_FVD[step * cameras + camera, 1 if domain.video and step else 0 :]
                       for camera in range(cameras)] for step in range(len(clip))]
            rows.append(self._embedded(domain, text, visual, [[]] * len(clip)))
        return rows

    def _vision_tokens(self, domain: Domain, clips: Sequence[Sequence[Sequence[np.ndarray]]]) -> tuple[Tensor, Tensor]:
        """Visual tokens (B, F, V, D) before the connector, and clip_BF (-1: padding), of steps by camera."""
        frames = [np.stack([image for step in clip for image in step]) for clip in clips]
        frames_BFHWC = np.zeros((len(clips), max(map(len, frames)), *frames[0].shape[1:]), np.uint8)
        clip_BF = np.full(frames_BFHWC.shape[:2], -1)
        for i, (images, clip) in enumerate(zip(frames, clips, strict=True)):
            frames_BFHWC[i, : len(images)] = images
            clip_BF[i, : len(images)] = np.arange(len(images)) % (len(clip[0]) if domain.video else len(images))
        device = self.agent.scale.device
        clip = torch.from_numpy(clip_BF).to(device)
        return self.agent.vision(self.agent.patchify(torch.from_numpy(frames_BFHWC).to(device)), clip), clip

    @torch.inference_mode()
    def classify(self, images: Sequence[Any], *, domain: str = "") -> list[Classification]:
        """The class of each clip.

        Args:
            images: for each clip an image uint8 (height, width, 3), or a sequence of 1 to `window` of them.
            domain: of the layout "label"; may be empty if the policy has it, or if there is only one.

        Raises:
            ValueError: a domain without classes, a wrong clip, or logits that are not finite.
        """
        chosen = self._of_layout(domain, "label")
        if not len(images):
            return []
        classes_BY = self.agent.classify(*self._vision_tokens(chosen, [chosen.clip_images(given) for given in images]))
        _check_finite(classes_BY.cpu().numpy())
        return [Classification(int(row.argmax()), row) for row in classes_BY.softmax(dim=-1).cpu().numpy()]


def _stacked(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of different lengths as x_BSD and position_BS, padded at their end, and a mask of what is not padding."""
    used = torch.tensor([len(x) for x, _ in rows], device=rows[0][0].device)
    length = int(used.max())
    x_BSD = torch.stack([F.pad(x, (0, 0, 0, length - len(x))) for x, _ in rows])
    position_BS = torch.stack([F.pad(position, (0, length - len(position))) for _, position in rows])
    return x_BSD, position_BS, torch.arange(length, device=used.device) < used[:, None]


def sampled(log_K: np.ndarray, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """An id by its log-probabilities: the best one, or a sample among the top p (Holtzman et al., 2019)."""
    if not temperature:
        return int(np.argmax(log_K))
    odds_K = np.exp((log_K - log_K.max()) / temperature)
    order_K = np.argsort(-odds_K, kind="stable")
    sums_K = np.cumsum(odds_K[order_K] / odds_K.sum())
    kept = order_K[: 1 + np.searchsorted(sums_K, top_p)]
    return int(random.choice(kept, p=odds_K[kept] / odds_K[kept].sum()))


def _check_sampling(domain: Domain, temperature: float, top_p: float, max_tokens: int) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature}: expected 0 (the most probable id) or more, and finite")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: expected above 0 and at most 1 (all ids)")
    if not 0 <= max_tokens <= domain.max_answer:
        raise ValueError(f"max_tokens={max_tokens}: domain {domain.name!r} was trained on answers of at most "
                         f"{domain.max_answer} tokens with </s>; expected 1 to {domain.max_answer}, or 0 for that")


def _check_finite(logits: np.ndarray) -> None:
    if not np.isfinite(logits).all():
        raise ValueError("the logits are NaN or infinite: the parameters are damaged, or their training diverged")


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
