"""The JSON files of an exported folder: config.json of the two Hugging Face models, tokenizer, agent.json.

agent.json holds the meta data of the checkpoint, and each domain's specs also as tables of ids, so that torch_agent.py
acts without this package.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from agent_jax.actions import BoundSpec
from agent_jax.actions.text_tokenizer import EOS, SPECIAL_TOKENS, HuggingFaceTokenizer, TextTokenizer, byte_letters
from agent_jax.checkpoints.exported.folder import FORMAT
from agent_jax.config import Config, LanguageConfig, VisionConfig
from agent_jax.convert.huggingface.architecture import OPT_EPS
from agent_jax.data.pipeline.domains import Domain
from agent_jax.models.vision import PIXEL_MEAN, PIXEL_STD


def vision_json(config: VisionConfig) -> dict[str, Any]:
    """config.json of CLIPVisionModel."""
    return {
        "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "hidden_size": config.width,
        "intermediate_size": config.mlp_width, "num_hidden_layers": config.depth, "num_attention_heads": config.heads,
        "num_channels": 3, "image_size": config.image_size, "patch_size": config.patch_size,
        "hidden_act": config.activation, "layer_norm_eps": config.layer_norm_eps, "attention_dropout": 0.0,
        "projection_dim": config.width,
    }


def preprocessor_json(config: VisionConfig) -> dict[str, Any]:
    """preprocessor_config.json: bilinear to a square, without crop."""
    side = {"height": config.image_size, "width": config.image_size}
    return {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "size": side,
            "resample": 2, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": list(PIXEL_MEAN), "image_std": list(PIXEL_STD)}


def language_json(config: LanguageConfig) -> dict[str, Any]:
    """config.json of OPTForCausalLM, with the vocabulary's size without padding.

    Raises:
        ValueError: a norm's epsilon that OPT's config.json cannot represent.
    """
    if config.layer_norm_eps != OPT_EPS:
        raise ValueError(f"config.model.language.layer_norm_eps={config.layer_norm_eps}: transformers' OPT has "
                         f"{OPT_EPS} and no field for it; such a model cannot be exported")
    return {
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": config.vocabulary_size,
        "hidden_size": config.width, "word_embed_proj_dim": config.width, "ffn_dim": config.mlp_width,
        "num_hidden_layers": config.depth, "num_attention_heads": config.heads,
        "activation_function": config.activation, "max_position_embeddings": config.positions,
        "do_layer_norm_before": True, "enable_bias": True, "layer_norm_elementwise_affine": True,
        "dropout": config.dropout, "attention_dropout": 0.0, "layerdrop": 0.0, "tie_word_embeddings": True,
        "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": SPECIAL_TOKENS.index("<pad>"),
    }


def tokenizer_json(tokenizer: TextTokenizer) -> str:
    """tokenizer.json of the `tokenizers` library with the same ids as `tokenizer`."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.library_json()
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    # A token for each byte: byte-level BPE without merges. The letters of the 256 bytes are GPT-2's.
    letters = byte_letters()
    ids = {token: i for i, token in enumerate(SPECIAL_TOKENS)} | {letters[byte]: 4 + byte for byte in range(256)}
    bytes_only = Tokenizer(BPE(vocab=ids, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_only.decoder = decoders.ByteLevel()
    return bytes_only.to_str(pretty=True)


TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "</s>", "eos_token": "</s>",
                    "pad_token": "<pad>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False,
                    "add_prefix_space": False}


def acting_json(domain: Domain) -> dict[str, Any]:
    """The fields of torch_agent.Domain for a domain with actions."""
    assert domain.spec is not None
    return {**_common_json(domain), "actions": spec_json(domain.spec),
            "state": spec_json(domain.state) if domain.state else None,
            **({"actions_per_image": domain.actions_per_image} if domain.actions_per_image > 1 else {})}


def prompted_json(domain: Domain) -> dict[str, Any]:
    """The fields of torch_agent.Domain for a domain that predicts a text or a class."""
    text = domain.vocabulary.text
    silent_ids = [number for number in range(len(SPECIAL_TOKENS)) if not text.decode([number])]
    return {**_common_json(domain), "layout": domain.layout, "max_answer": domain.max_answer,
            "text_ids_end": text.size, "silent_ids": silent_ids}


def _common_json(domain: Domain) -> dict[str, Any]:
    return {
        "window": domain.window, "max_text": domain.max_text, "first_position": domain.first_position,
        "video": domain.video, "image_size": domain.image_size, "cameras": list(domain.camera_names),
    }


def spec_json(bound: BoundSpec) -> dict[str, Any]:
    """A spec with the ids of its tokens, and its automaton as lists of (ids, states after them)."""
    spec, vocabulary, automaton = bound.spec, bound.vocabulary, bound.automaton
    groups = [{"start": vocabulary.id(spec.block, group.start),
               "parts": [{**plain, "index": part.index, "ids": vocabulary.ids(spec.block, part.tokens).tolist()}
                         for plain, part in zip(written["parts"], group.parts, strict=True)],
               "end": vocabulary.id(spec.block, group.end)}
              for written, group in zip(spec.to_dict()["groups"], spec.groups, strict=True)]
    ways = [[automaton.ids_A[after_A >= 0].tolist(), after_A[after_A >= 0].tolist()] for after_A in automaton.next_QA]
    fields = {key: {"shape": list(shape), "dtype": dtype.name} for key, (shape, dtype) in spec.fields.items()}
    return {"name": spec.name, "groups": groups, "terminal": bound.terminal_ids().tolist() if spec.terminal else [],
            "fields": fields, "automaton": {"start": automaton.start, "accept": automaton.accept, "ways": ways}}


def agent_json(config: Config, domains: Mapping[str, Domain], source: Mapping[str, Any]) -> str:
    """agent.json: the checkpoint's meta data, and the fields that torch_agent.py reads."""
    preprocessing = {"image_size": config.model.vision.image_size, "resize": "bilinear, antialiased, no crop",
                     "mean": list(PIXEL_MEAN), "std": list(PIXEL_STD)}
    content = {"format": FORMAT, "source": dict(source), "preprocessing": preprocessing,
               "config": dataclasses.asdict(config), "domains": {name: domains[name].to_meta() for name in domains},
               "acting": {name: acting_json(domain) for name, domain in domains.items() if domain.spec},
               "prompted": {name: prompted_json(domain) for name, domain in domains.items() if not domain.spec}}
    return json.dumps(content, indent=1) + "\n"
