"""Which kernel of attention `auto` is."""

import dataclasses
import types

import pytest

from agent_jax.config import Config, ModelConfig
from agent_jax.config.kernels import kernel_on

CPU, TPU = (types.SimpleNamespace(platform=name) for name in ("cpu", "tpu"))
GPU = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
BF16 = ModelConfig(dtype="bfloat16")


@pytest.mark.parametrize(("device", "model", "expected"), [
    (CPU, BF16, "cpu"),
    (TPU, BF16, "splash"),
    (GPU, BF16, "cudnn"),
    (types.SimpleNamespace(platform="gpu"), BF16, "cudnn"),  # a plan's, which does not say how old it is
    (types.SimpleNamespace(platform="gpu", compute_capability="7.5"), BF16, "xla"),
    (types.SimpleNamespace(platform="gpu", compute_capability="gfx942"), BF16, "xla"),  # AMD's
    (GPU, ModelConfig(dtype="float32"), "xla"),
    (GPU, dataclasses.replace(BF16, mae=dataclasses.replace(BF16.mae, heads=4)), "xla"),  # heads of 192
])
def test_auto_is_the_best_kernel_that_can_compute_the_model_there(device, model, expected):
    assert kernel_on(device, model) == expected


def test_the_default_is_auto_and_a_name_is_itself():
    assert Config().model.attention == "auto"
    assert kernel_on(TPU, dataclasses.replace(BF16, attention="xla")) == "xla"
