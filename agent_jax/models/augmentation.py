"""Random changes of colour on the device, in training only: brightness, then saturation, then hue.

    frames_BFHWC (uint8) --x b, towards grey by s, hue + h: one draw a row--> frames_BFHWC (f32, still 0..255)

All images of a row get the same draw, so a clip keeps its colours over time. The result is what the encoder sees and
what the decoder is to paint. Everything is elementwise, so XLA may join it with the normalisation after it (vision.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from agent_jax.config import AugmentationConfig

WHITE = 255.0
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as in PIL and torchvision
BRIGHTNESS_KEY, SATURATION_KEY, HUE_KEY = range(3)  # so that switching one off leaves the draws of the others


def augment(frames_BFHWC: jax.Array, keys_B: jax.Array, config: AugmentationConfig) -> jax.Array:
    """The images with changed colours, f32 in [0, 255]; the same array where everything is off."""
    if not (config.brightness or config.saturation or config.hue):
        return frames_BFHWC

    def drawn(purpose: int, low: float, high: float) -> jax.Array:
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, purpose), minval=low, maxval=high)  # noqa: E731
        return jax.vmap(draw)(keys_B)[:, None, None, None, None]

    pixels_BFHWC = frames_BFHWC.astype(jnp.float32)
    if config.brightness:
        pixels_BFHWC = brightness(pixels_BFHWC, drawn(BRIGHTNESS_KEY, *config.brightness))
    if config.saturation:
        pixels_BFHWC = saturation(pixels_BFHWC, drawn(SATURATION_KEY, *config.saturation))
    if config.hue:
        pixels_BFHWC = hue(pixels_BFHWC, drawn(HUE_KEY, -config.hue, config.hue))
    return pixels_BFHWC


def brightness(pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Pixels (..., 3) in [0, 255] times `factor`, clipped (as PIL's ImageEnhance.Brightness)."""
    return jnp.clip(pixels * factor, 0.0, WHITE)


def saturation(pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Pixels (..., 3) in [0, 255], `factor` times as far from their grey, clipped (as PIL's ImageEnhance.Color)."""
    grey = sum(weight * pixels[..., channel : channel + 1] for channel, weight in enumerate(GREY))
    return jnp.clip(grey + (pixels - grey) * factor, 0.0, WHITE)


def hue(pixels: jax.Array, turn: jax.Array) -> jax.Array:
    """Pixels (..., 3), their hue turned by `turn` of the colour circle; HSV's saturation and value stay (Smith, 1978).

    With the hue H in sixths, value v and chroma c = max - min, channel n in (5, 3, 1) of (r, g, b) is
    v - c clip(min(k, 4 - k), 0, 1), k = (n + H) mod 6.
    """
    r, g, b = (pixels[..., channel : channel + 1] for channel in range(3))
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    safe = jnp.where(chroma > 0, chroma, 1.0)  # grey has no hue, and needs none
    # Not `value == r`: a compiler that makes r anew for each use may round it another way, and none would be the value.
    of_r, of_g, of_b = (g - b) / safe, (b - r) / safe + 2.0, (r - g) / safe + 4.0
    sixths = jnp.where((r >= g) & (r >= b), of_r, jnp.where(g >= b, of_g, of_b))

    def channel(n: int) -> jax.Array:
        k = jnp.mod(n + sixths + 6.0 * turn, 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

    return jnp.concatenate([channel(5), channel(3), channel(1)], axis=-1)
