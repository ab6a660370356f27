"""Which kernel of attention runs where, and what it asks of a model and a device (models/attention_kernels.py)."""

from __future__ import annotations

from typing import Any

from agent_jax.config.schema import ModelConfig

PLATFORM = {"cudnn": "gpu", "splash": "tpu", "cpu": "cpu"}  # xla runs anywhere
CUDNN_CAPABILITY = 8.0  # Ampere, the first GPUs with cuDNN's kernels
CUDNN_WIDEST_HEAD = 128


def kernel_on(device: Any, model: ModelConfig) -> str:
    """The kernel that `config.model.attention` stands for on a device: `auto` is the best that is known of.

    On TPU that is splash, with which a step moves a fifth less through memory, by the TPU's compiler; no TPU has run
    it. On an NVIDIA GPU it is cuDNN's where that can be. On a CPU it is the one of models/cpu. Measurements:
    docs/design/performance.md.

    Args:
        device: a `jax.Device`, or what has its `platform`.
        model: attention, and what its kernel must compute.
    """
    if model.attention != "auto":
        return model.attention
    if device.platform == "gpu":
        return "xla" if cudnn_lacks(model) or has_no_cudnn(device) else "cudnn"
    return {"tpu": "splash", "cpu": "cpu"}.get(device.platform, "xla")


def cudnn_lacks(model: ModelConfig) -> str:
    """Why cuDNN's kernel cannot compute a model: field, what was found and expected; "" if it can."""
    if model.dtype != "bfloat16":
        return f"it computes in 16 bits, but config.model.dtype={model.dtype!r}; expected 'bfloat16'"
    for name, part in (("vision", model.vision), ("language", model.language), ("mae", model.mae)):
        head = part.width // part.heads
        if head > CUDNN_WIDEST_HEAD or head % 8:
            return (f"config.model.{name}.width={part.width} / heads={part.heads} makes heads of {head}; expected a "
                    f"multiple of 8, at most {CUDNN_WIDEST_HEAD}")
    return ""


def has_no_cudnn(device: Any) -> bool:
    """Whether a GPU is known to have no kernels of cuDNN's: an older one of NVIDIA's, or another maker's ("gfx942")."""
    capability = getattr(device, "compute_capability", "")
    try:
        return bool(capability) and float(capability) < CUDNN_CAPABILITY
    except ValueError:
        return True
