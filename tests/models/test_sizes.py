"""Full-size shapes, counted without computing: CLIP ViT-B/16, OPT-125M and the paper's 277M, part by part."""

import dataclasses
import math

import jax
import pytest

from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import LanguageConfig, ModelConfig, VisionConfig
from agent_jax.models.agent import init_params


def sizes(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part."""
    leaves = flat(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    assert {str(leaf.dtype) for leaf in leaves.values()} == {"float32"}
    parts = {path.split("/")[0] for path in leaves}
    return {part: sum(math.prod(leaf.shape) for path, leaf in leaves.items() if path.startswith(f"{part}/"))
            for part in parts}


def model(*, positions="clip", temporal=False, rows=51_576, multiple=1) -> ModelConfig:
    return ModelConfig(vision=VisionConfig(positions=positions, temporal_attention=temporal),
                       language=LanguageConfig(vocabulary_size=rows, vocabulary_multiple=multiple))


def test_the_image_encoder_has_as_many_parameters_as_clip_vit_b_16():
    assert sizes(model())["vision"] == 85_799_424


def test_sincos_positions_take_away_the_position_table_and_nothing_else():
    assert sizes(model(positions="sincos"))["vision"] == 85_799_424 - 197 * 768


def test_the_language_model_has_as_many_parameters_as_opt_125m():
    assert sizes(model(rows=50_272))["language"] == 125_239_296


def test_the_agent_has_the_papers_277_million_parameters_part_by_part():
    found = sizes(model(temporal=True))
    assert found == {"vision": 114_166_272, "mae": 36_622_848, "connector": 590_592, "language": 126_240_768}
    assert sum(found.values()) == 277_620_480


@pytest.mark.parametrize(("multiple", "rows"), [(1, 51_578), (128, 51_584), (1024, 52_224)])
def test_the_token_table_is_padded_to_a_multiple(multiple, rows):
    config = model(rows=51_578, multiple=multiple)
    table = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))["language"]["token_embedding"]
    assert table.shape == (rows, 768)


def test_every_remat_policy_and_dtype_has_the_same_parameters():
    base = model(rows=300)
    plain = jax.eval_shape(lambda: init_params(base, jax.random.key(0)))
    for change in ({"remat": "dots"}, {"remat": "full"}, {"dtype": "bfloat16"}):
        config = dataclasses.replace(base, **change)
        assert jax.eval_shape(lambda config=config: init_params(config, jax.random.key(0))) == plain
