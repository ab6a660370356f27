"""Parameters as PyTorch tensors and back are equal."""

from __future__ import annotations

import numpy as np
import pytest
from packed_rows import random_params
from tiny_checkpoints import tiny_config

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints.exported import tensors as torch_tensors
from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import LanguageConfig, ModelConfig, VisionConfig

VOCABULARY = Vocabulary.build("bytes", ("babyai",))
MODELS = {
    "image": tiny_config(VOCABULARY, ()).model,
    "video": tiny_config(VOCABULARY, (), temporal_attention=True, positions="clip", classes=5).model,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_value_is_restored_bitwise_except_the_padding_of_the_token_table(name):
    model = MODELS[name]
    params = random_params(model)
    files: dict[str, dict[str, np.ndarray]] = {}
    for section, tensors in torch_tensors.to_tensors(params, model):
        files.setdefault(section.file, {}).update(tensors)
    back = flat(torch_tensors.to_params(lambda file, name: files[file][name], model))
    leaves = flat(params)
    assert back.keys() == leaves.keys()
    K = model.language.vocabulary_size
    for path, leaf in leaves.items():
        expected = np.asarray(leaf)
        if path == "language/token_embedding":
            assert not back[path][K:].any()
            expected = np.concatenate([expected[:K], np.zeros_like(expected[K:])])
        np.testing.assert_array_equal(back[path], expected, err_msg=path)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_those_of_the_tensors(name):
    model = MODELS[name]
    found = torch_tensors.shapes(model)
    for section, tensors in torch_tensors.to_tensors(random_params(model), model):
        for tensor, array in tensors.items():
            assert found[section.file].pop(tensor) == array.shape
    assert not any(found.values())


@pytest.mark.parametrize(("temporal", "values"), [(False, 249_108_480), (True, 277_475_328)])
def test_shapes_of_the_full_size_model_need_no_parameters(temporal: bool, values: int):
    vision, language = VisionConfig(temporal_attention=temporal), LanguageConfig(vocabulary_size=51_578)
    shapes = torch_tensors.shapes(ModelConfig(vision, language))
    count = sum(int(np.prod(shape)) for tensors in shapes.values() for shape in tensors.values())
    # The fixed table of positions is stored; the six rows of padding are not.
    assert count == values + 197 * 768 - 6 * 768


def test_sin_cos_positions_that_were_trained_are_refused():
    model: ModelConfig = MODELS["image"]
    files: dict[str, dict[str, np.ndarray]] = {}
    for section, tensors in torch_tensors.to_tensors(random_params(model), model):
        files.setdefault(section.file, {}).update(tensors)
    name = "vision_model.embeddings.position_embedding.weight"
    files[torch_tensors.VISION_FILE][name] = files[torch_tensors.VISION_FILE][name] + 0.1
    with pytest.raises(ValueError, match=r"position_embedding.weight differs from the fixed sin-cos table by.* 0\.1"):
        torch_tensors.to_params(lambda file, name: files[file][name], model)
