"""CLIP's positions for images of another size: equal to torch's bicubic interpolation, and only with the flag."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from random_huggingface import save_vision
from tiny_conversions import load_vision

from agent_jax.convert.huggingface.architecture import vision_config
from agent_jax.convert.huggingface.positions import resized_positions
from agent_jax.convert.parity.tolerance import STACK, compare
from agent_jax.models.vision import PIXEL_MEAN, PIXEL_STD, VisionEncoder, patchify


@pytest.mark.parametrize(("old", "new"), [(14, 24), (7, 14), (24, 16), (3, 1), (1, 5), (14, 15), (2, 2)])
def test_a_resized_table_equals_torchs_and_the_class_row_does_not_change(old, new):
    table = np.random.default_rng(0).normal(size=(1 + old * old, 8)).astype(np.float32)
    grid = torch.from_numpy(table[1:]).reshape(1, old, old, 8).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    resized = resized_positions(table, new)
    assert (resized.shape, resized.dtype) == ((1 + new * new, 8), np.float32)
    np.testing.assert_array_equal(resized[0], table[0])
    np.testing.assert_allclose(resized[1:], grid.permute(0, 2, 3, 1).reshape(-1, 8).numpy(), atol=2e-6)


@pytest.mark.parametrize("size", [40, 16])
def test_images_of_another_size_are_encoded_as_transformers_does_with_interpolated_positions(tmp_path, size):
    model = save_vision(tmp_path).eval()
    config = dataclasses.replace(vision_config(tmp_path), image_size=size)
    params, report = load_vision(tmp_path, config, interpolate_positions=True)
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, size, size, 3), np.uint8)
    pixels = (frames[0].astype(np.float32) / 255 - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), interpolate_pos_encoding=True,
                         output_hidden_states=True)
    with jax.default_matmul_precision("highest"):
        encoder = VisionEncoder(config)
        _, hidden = encoder.apply({"params": params}, patchify(jnp.asarray(frames), 8), jnp.zeros((1, 2), jnp.int32),
                                  collect="hidden")
    assert len(hidden) == len(expected.hidden_states) == 4
    for layer, (ours, theirs) in enumerate(zip(hidden, expected.hidden_states, strict=True)):
        row = compare(f"after block {layer}", ours[0], theirs, STACK)
        assert row.passed, row
    leaf = report.ported["vision/position_embedding"]
    assert leaf.shape == (1 + (size // 8) ** 2, 32)
    assert leaf.operation == f"keep CLS, resize 3 x 3 to {size // 8} x {size // 8} (bicubic)"


def test_another_size_is_refused_without_the_flag_and_the_flag_is_named(tmp_path):
    save_vision(tmp_path)
    config = dataclasses.replace(vision_config(tmp_path), image_size=40)
    with pytest.raises(ValueError, match="image_size=40, the weights: image_size=24") as error:
        load_vision(tmp_path, config)
    assert "--config.init.pretrained.interpolate_positions=true" in str(error.value)
    with pytest.raises(ValueError, match="patch_size=4, the weights: patch_size=8"):
        load_vision(tmp_path, dataclasses.replace(config, patch_size=4), interpolate_positions=True)


def test_the_flag_changes_nothing_at_the_same_size(tmp_path):
    save_vision(tmp_path)
    config = vision_config(tmp_path)
    plain, _ = load_vision(tmp_path, config)
    resized, report = load_vision(tmp_path, config, interpolate_positions=True)
    np.testing.assert_array_equal(resized["position_embedding"], plain["position_embedding"])
    assert report.ported["vision/position_embedding"].operation == "copy"


def test_fixed_positions_take_any_size_and_the_report_names_the_table(tmp_path):
    save_vision(tmp_path)
    config = dataclasses.replace(vision_config(tmp_path), image_size=40, positions="sincos")
    params, report = load_vision(tmp_path, config)
    assert "position_embedding" not in params
    [(name, item)] = report.left_out.items()
    assert (name, item.shape) == ("embeddings.position_embedding.weight", (10, 32))
    assert "sincos, a fixed table, here for images of 40 pixels, not 24" in item.reason
