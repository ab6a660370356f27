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
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name in PyTorch's documentation
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agent_jax.convert.exported_policy import (
    EOS,
    Classification,
    Codec,
    Domain,
    Episode,
    ExportedPolicy,
    GeneratedText,
    Row,
    Step,
    sampled,
)

__all__ = ["EOS", "Agent", "Classification", "Codec", "Domain", "GeneratedText", "Policy", "Step", "sampled"]

POSITION_OFFSET = 2  # the first two rows of OPT's position table are unused
PARTS = {"vision": "vision_model.", "language": "model.decoder."}  # folder: prefix of the names in its file
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
# A batch of samples, for training


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
