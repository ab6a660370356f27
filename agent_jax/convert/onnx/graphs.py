"""The two ONNX graphs of an agent, exported from the PyTorch module (`torch_agent`).

    encoder.onnx    frames_BFHWC clip_BF                                   -> visual_BFVD [probability_BY]
    language.onnx   token_BC visual_BC visual_BGD position_BC last_B ids_A
                    visible_BZ past_L_k past_L_v (B, N, Z, H)              -> logits_BA new_L_k new_L_v (B, N, C, H)

Prefill and decode step are one graph, so the weights are stored once: it reads C slots of each row after the Z slots of
a cache that the caller owns, of which a row sees those in `visible_BZ`. The head is a lookup of the wanted ids in the
token table, which is tied, so that the table is stored once as well and an action costs its own ids only. Keys and
values are inputs and outputs of their own for each layer: nothing is copied but what is new.
"""

from __future__ import annotations

import collections
import logging
import pathlib
import shutil
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from agent_jax.convert.pytorch import torch_agent

OPSET = 21  # the first with int4
IR_VERSION = 10  # onnxruntime 1.18 and later
HIDDEN = -1e4  # added to the scores of slots that are not seen; within the range of float16


class EncoderGraph(nn.Module):
    """Images to projected visual tokens, and to class probabilities if the agent has a class head."""

    def __init__(self, agent: torch_agent.Agent):
        super().__init__()
        self.agent = agent

    def forward(self, frames_BFHWC: Tensor, clip_BF: Tensor) -> tuple[Tensor, ...]:
        """visual_BFVD, then probability_BY."""
        tokens = self.agent.vision(self.agent.patchify(frames_BFHWC), clip_BF)
        visual = self.agent.connector(tokens)
        if self.agent.classifier is None:
            return (visual,)
        return visual, self.agent.classify(tokens, clip_BF).softmax(dim=-1)


class LanguageGraph(nn.Module):
    """A chunk of each row after what is in its cache; see the module's drawing."""

    def __init__(self, language: torch_agent.Language):
        super().__init__()
        self.language = language

    def forward(self, token_BC: Tensor, visual_BC: Tensor, visual_BGD: Tensor, position_BC: Tensor, last_B: Tensor,
                ids_A: Tensor, visible_BZ: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """logits_BA, then keys and values of the chunk, layer by layer."""
        language = self.language
        index = visual_BC.clamp(min=0)[..., None].expand(-1, -1, visual_BGD.shape[2])
        # One lookup for row and head: a table that two lookups share would be quantised twice.
        embedded = language.embed_tokens(torch.cat([token_BC.flatten(), ids_A]))
        slots_BCD, head_AD = embedded[: token_BC.numel()].unflatten(0, token_BC.shape), embedded[token_BC.numel() :]
        x = torch.where(visual_BC[..., None] >= 0, visual_BGD.gather(1, index), slots_BCD)
        x = x + language.embed_positions(position_BC + torch_agent.POSITION_OFFSET)
        column_C = torch.arange(token_BC.shape[1])
        past_B11Z = torch.where(visible_BZ, 0.0, HIDDEN)[:, None, None]
        bias_CC = torch.where(column_C[:, None] >= column_C[None], 0.0, HIDDEN)
        bias = torch.cat([past_B11Z.expand(-1, -1, token_BC.shape[1], -1),
                          bias_CC[None, None].expand(token_BC.shape[0], -1, -1, -1)], dim=-1)
        new: list[Tensor] = []
        layers: Any = language.layers
        for number, layer in enumerate(layers):
            attention, normed = layer.self_attn, layer.self_attn_layer_norm(x)
            heads = (attention.heads, -1)
            k, v = (part(normed).unflatten(-1, heads).transpose(1, 2) for part in (attention.k_proj, attention.v_proj))
            new += [k, v]
            if number == len(layers) - 1:  # of the last layer only the last slot is wanted
                last = last_B[:, None, None]
                x, normed = (y.gather(1, last.expand(-1, 1, y.shape[2])) for y in (x, normed))
                bias = bias.gather(2, last[..., None].expand(-1, 1, 1, bias.shape[3]))
            q = attention.q_proj(normed).unflatten(-1, heads).transpose(1, 2)
            k, v = (torch.cat(pair, dim=2) for pair in ((past[2 * number], k), (past[2 * number + 1], v)))
            # The scale after the product, with which onnxruntime computes it.
            out = ((q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5 + bias).softmax(dim=-1) @ v
            x = x + attention.out_proj(out.transpose(1, 2).flatten(-2))
            x = x + layer.fc2(torch_agent.ACTIVATIONS[layer.activation](layer.fc1(layer.final_layer_norm(x))))
        hidden_BD = language.final_layer_norm(x)[:, 0]
        return hidden_BD @ head_AD.T, *new


def write_graphs(agent: torch_agent.Agent, folder: pathlib.Path) -> None:
    """Write encoder.onnx and language.onnx in float32, each with its weights in a file beside it."""
    model = agent.config["model"]
    size, depth = model["vision"]["image_size"], model["language"]["depth"]
    heads, width = model["language"]["heads"], model["language"]["width"]
    dynamic = torch.export.Dim.DYNAMIC
    frames = torch.zeros(2, 3, size, size, 3, dtype=torch.uint8)
    outputs = ["visual_BFVD", *(["probability_BY"] if agent.classifier else [])]
    _write(EncoderGraph(agent), {"frames_BFHWC": frames, "clip_BF": torch.zeros(2, 3, dtype=torch.int64)},
           {name: {0: dynamic, 1: dynamic} for name in ("frames_BFHWC", "clip_BF")}, ["frames_BFHWC", "clip_BF"],
           outputs, folder / "encoder.onnx")
    # Sizes that differ from each other, so that none is taken for another.
    B, C, G, A, Z = 2, 5, 7, 3, 4
    whole = torch.int64
    inputs: dict[str, Any] = {
        "token_BC": torch.zeros(B, C, dtype=whole), "visual_BC": torch.zeros(B, C, dtype=whole),
        "visual_BGD": torch.zeros(B, G, width), "position_BC": torch.zeros(B, C, dtype=whole),
        "last_B": torch.zeros(B, dtype=whole), "ids_A": torch.arange(A), "visible_BZ": torch.ones(B, Z) > 0,
        "past": [torch.zeros(B, heads, Z, width // heads) for _ in range(2 * depth)]}
    shapes: dict[str, Any] = {name: {number: dynamic for number, letter in enumerate(name.partition("_")[2])
                                     if letter in "BCGAZ"} for name in inputs if name != "past"}
    shapes["past"] = [{0: dynamic, 2: dynamic}] * (2 * depth)
    parts = [f"{layer}_{part}" for layer in range(depth) for part in "kv"]
    _write(LanguageGraph(agent.language), inputs, shapes,
           [*(name for name in inputs if name != "past"), *(f"past_{part}" for part in parts)],
           ["logits_BA", *(f"new_{part}" for part in parts)], folder / "language.onnx")


def _write(module: nn.Module, inputs: dict[str, Any], shapes: dict[str, Any], input_names: list[str],
           output_names: list[str], path: pathlib.Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names operators of torchvision, which is not needed
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(module.eval(), (), kwargs=inputs, dynamo=True, opset_version=OPSET,
                                    dynamic_shapes=shapes, input_names=input_names, output_names=output_names,
                                    verbose=False)
    assert program is not None
    model = program.model_proto
    _transpose_weights(model.graph)
    save(model, path)


def _transpose_weights(graph: onnx.GraphProto) -> None:
    """Store weights as products read them: the exporter leaves a transposition of large ones to the run time."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses = collections.Counter(name for node in graph.node for name in node.input)
    for node in [node for node in graph.node if node.op_type == "Transpose"]:
        weight = weights.get(node.input[0])
        if weight is None or uses[weight.name] > 1:
            continue
        axes = next((list(one.ints) for one in node.attribute if one.name == "perm"), None)
        array = onnx.numpy_helper.to_array(weight).transpose(axes)
        weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), node.output[0]))
        graph.node.remove(node)


def save(model: onnx.ModelProto, path: pathlib.Path) -> None:
    """Write a graph, with its weights in PATH.data."""
    model.ir_version = IR_VERSION
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    shutil.copymode(path, path.with_name(f"{path.name}.data"))  # readable as the graph is, to whoever gets the folder
