"""`python -m agent_jax.view attention`: where an action looks, by attention and by occlusion.

    window of an episode up to step t --Agent--> weights of the slots that predict the choices of t, layer by layer
       | for each patch: replaced by the mean colour of its image --Agent--> other probabilities of these choices
       '--> rank correlation of both: attention alone proves little (Jain and Wallace 2019, arXiv 1902.10186)

Occlusion of a patch is the Kullback-Leibler divergence of the probabilities of the legal ids without the patch from
those with it, summed over the choices of the action, with the recorded ids before each choice.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import rel_entr, softmax
from scipy.stats import spearmanr

from agent_jax.config import ModelConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Row, Window, lay_out, row_size, stack
from agent_jax.data.pipeline.windows import Windows
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.models.agent import Agent, Params
from agent_jax.models.attention import attend, attend_causally
from agent_jax.models.attention_kernels import Patterns
from agent_jax.models.compute import Compute
from agent_jax.models.transformer import layers_apart
from agent_jax.runtime.compiler_options import compiler_options
from agent_jax.view.page import image_uri, write_page

_BATCH = 16  # rows with an occluded patch that are computed at a time
_MOST_OCCLUSIONS = 400  # forwards of a page; larger models hide squares of several patches
_SIDE = 140  # pixels of an image on the page, at least
_HEAT = np.asarray((214, 40, 40), np.float32)


@dataclasses.dataclass(frozen=True)
class Looked:
    """Where the choices of an action look. Cells are squares of patches: G x G of each of the F images."""

    images: np.ndarray  # uint8 (F, size, size, 3)
    layers_LFGG: np.ndarray  # attention from the choices' slots to the patches of a cell, mean over heads and choices
    occlusion_FGG: np.ndarray  # nats
    kinds: dict[str, np.ndarray]  # kind of slot -> (L,) share of the attention; they add up to 1
    choices: list[tuple[str, str, float, float]]  # recorded token, likeliest token, probability of both

    @property
    def mean_FGG(self) -> np.ndarray:
        """The attention averaged over layers."""
        return self.layers_LFGG.mean(axis=0)

    def rank_correlation(self, attention_FGG: np.ndarray) -> float:
        """Spearman's correlation with the occlusion over all cells; NaN if one of them is constant."""
        pair = attention_FGG.ravel(), self.occlusion_FGG.ravel()
        return float("nan") if min(map(np.ptp, pair)) == 0 else float(np.asarray(spearmanr(*pair))[0])


def write_attention_page(path: Path, trained: TrainedRun, *, episode: int, step: int | None = None, domain: str = "",
                         data: str = "", split: str = "", block: int = 0) -> str:
    """Write the page of one action.

    Args:
        path: of the page.
        trained: the checkpoint.
        episode: number of the record in the split.
        step: of the record; None: the first with a whole window before it.
        domain: name; "": the only one with actions.
        data: directory of the data set; "": the run's own.
        split: "": the run's validation split.
        block: patches of a side of the square that is hidden at a time; 0: 1, or more in models of many patches.

    Returns:
        A line for the terminal.

    Raises:
        FileNotFoundError, ValueError: no such data, episode or step, or an action without a choice.
    """
    of_domain = trained.domain(domain)
    if of_domain.spec is None:
        raise ValueError(f"domain {of_domain.name!r}: has no actions (layout {of_domain.layout!r}), expected one with "
                         "actions; choose it by --domain")
    of_domain = dataclasses.replace(of_domain, sampling="consecutive", stride=1)  # a window from every step on
    store, split = trained.open_store(of_domain, data), trained.split(of_domain, split)
    windows = Windows(of_domain, store, split)
    numbers = np.flatnonzero(windows.record == episode)
    if not len(numbers):
        raise ValueError(f"--episode={episode}: {store.directory}, split {split!r}, has the records 0 to "
                         f"{int(windows.record.max())}")
    step = min(of_domain.window, len(numbers)) - 1 if step is None else step
    if not 0 <= step < len(numbers):
        raise ValueError(f"--step={step}: record {episode} of split {split!r} has the steps 0 to {len(numbers) - 1}")
    start = max(0, step - of_domain.window + 1)
    window = windows.read(int(numbers[start]), 0)
    window = dataclasses.replace(window, steps=window.steps[: step - start + 1])
    looked = look(trained, trained.params(), windows, window, block)
    rows = [("mean of the layers", looked.mean_FGG), *((f"layer {n + 1}", layer)
                                                       for n, layer in enumerate(looked.layers_LFGG))]
    correlations = [looked.rank_correlation(attention) for _, attention in rows]
    write_page(
        path, "attention.html", title=f"Attention: {of_domain.name}, episode {episode}, step {step}",
        checkpoint=f"{trained.directory}, step {trained.step}", data=f"{store.directory}, split {split!r}",
        instruction=windows.texts(int(numbers[start]))[0], looked=looked, steps=range(start, step + 1),
        cells=looked.occlusion_FGG.shape[-1],
        heats=[(name, correlation, heat_pictures(looked.images, attention))
               for (name, attention), correlation in zip(rows, correlations, strict=True)],
        images=[image_uri(image, _SIDE) for image in looked.images],
        occluded=heat_pictures(looked.images, looked.occlusion_FGG))
    return (f"rank correlation of attention (mean of {len(looked.layers_LFGG)} layers) with occlusion: "
            f"{correlations[0]:.2f}, over {looked.occlusion_FGG.size} squares of {len(looked.images)} images")


class ActionAttention:
    """Where the choices of a window's last action look, by the language model's attention; compiled once."""

    def __init__(self, model: ModelConfig, domain: Domain) -> None:
        self._domain, self._visual_tokens, self._patches = domain, 1 + model.vision.patches, model.vision.patches
        self._size = row_size([domain], self._visual_tokens, domain.images, model.language.positions)
        options = compiler_options(jax.local_devices()[0], model.dtype, layers=model.language.depth)
        self._observe = jax.jit(lambda params, batch: _observed(model, params, batch), compiler_options=options)

    def row(self, window: Window) -> tuple[Row, np.ndarray]:
        """The window's row, and the numbers of its targets (C,) that are choices of the last action.

        Raises:
            ValueError: the action has no choice.
        """
        row = lay_out((window,), self._size, self._visual_tokens, self._patches)
        last = window.steps[-1]
        first = len(window.text_ids) - 1 + sum(len(step.action_ids) for step in window.steps[:-1])
        targets_C = first + np.flatnonzero(last.action_choices >= 0)
        if not len(targets_C):
            raise ValueError(f"domain {self._domain.name!r}: the action of that step has no choice, since every id is "
                             "forced; choose another --step")
        return row, targets_C

    def __call__(self, params: Params, row: Row, targets_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """logits_TK of the row; and the weights (L, Z) of its slots, the mean over heads and choices."""
        logits, weights = self._observe(params, stack([row]))
        slots_C = row["slot_BT"][targets_C]
        return np.asarray(logits)[0], np.asarray(weights, np.float64)[:, 0, slots_C].mean(axis=1)

    def heat(self, params: Params, window: Window) -> np.ndarray:
        """The attention to the patches of each image (F, G, G), averaged over layers; ValueError as `row`."""
        row, targets_C = self.row(window)
        side, frames = math.isqrt(self._patches), sum(len(step.frames) for step in window.steps)
        weights_LZ = self(params, row, targets_C)[1]
        return _by_place(weights_LZ, row, window, self._visual_tokens, (frames, side, side), 1)[0].mean(axis=0)


def look(trained: TrainedRun, params: Params, windows: Windows, window: Window, block: int = 0) -> Looked:
    """Attention and occlusion of the action of a window's last step.

    Raises:
        ValueError: the action has no choice, or `block` does not divide the patches of a side.
    """
    model, domain = trained.config.model, windows.domain
    assert domain.spec is not None
    spec = domain.spec
    attention = ActionAttention(model, domain)
    side = model.vision.image_size // model.vision.patch_size
    frames = sum(len(step.frames) for step in window.steps)
    divisors = [n for n in range(1, side + 1) if side % n == 0]
    block = block or next((n for n in divisors if frames * (side // n) ** 2 <= _MOST_OCCLUSIONS), side)
    if side % block:
        raise ValueError(f"--block={block}: expected a divisor of the {side} patches of an image's side, one of "
                         f"{', '.join(map(str, divisors))}")
    row, targets_C = attention.row(window)
    legal_CA = spec.automaton.next_QA[row["choice_BT"][targets_C]] >= 0
    ids_A = np.asarray(spec.automaton.ids_A)
    device, options = jax.local_devices()[0], compiler_options(jax.local_devices()[0], model.dtype,
                                                               layers=model.language.depth)
    on_device = jax.device_put(params, device)
    logits_TK, weights_LZ = attention(on_device, row, targets_C)
    logits_of = jax.jit(lambda params, batch: _observed(model, params, batch)[0][:, targets_C][..., ids_A],
                        compiler_options=options)

    def probabilities(logits_CA: Any) -> np.ndarray:
        return softmax(np.where(legal_CA, np.asarray(logits_CA, np.float64), -np.inf), axis=-1)

    expected_CA = probabilities(logits_TK[targets_C][:, ids_A])
    rows = [_occluded(row, f, y, x, block * model.vision.patch_size)
            for f in range(frames) for y in range(side // block) for x in range(side // block)]
    found: list[float] = []
    for begin in range(0, len(rows), _BATCH):
        part = rows[begin : begin + _BATCH]
        padded = part + part[-1:] * (_BATCH - len(part))  # one shape is compiled
        found += [float(rel_entr(expected_CA, probabilities(one)).sum())
                  for one in np.asarray(logits_of(on_device, stack(padded)))[: len(part)]]
    cells = (frames, side // block, side // block)
    layers_LFGG, kinds = _by_place(weights_LZ, row, window, 1 + model.vision.patches, cells, block)
    tokens, best_C = domain.vocabulary.token, expected_CA.argmax(axis=-1)
    recorded_C = row["target_BT"][targets_C]
    place_of = {int(identifier): place for place, identifier in enumerate(ids_A)}
    choices = [(tokens(int(recorded)), tokens(int(ids_A[best])), float(p_A[place_of[int(recorded)]]), float(p_A[best]))
               for recorded, best, p_A in zip(recorded_C, best_C, expected_CA, strict=True)]
    return Looked(row["frames_BFHWC"][:frames], layers_LFGG, np.asarray(found).reshape(cells), kinds, choices)


def _observed(model: ModelConfig, params: Params, batch: Any) -> tuple[jax.Array, jax.Array]:
    """logits_BTK, and the language model's attention weights (L, B, S, Z), the mean over heads."""
    seen: list[jax.Array] = []

    def causally(q_BSNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, segment_BS: jax.Array) -> jax.Array:
        B, S, N, _ = k_BSNH.shape
        identity_BSNZ = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, N, S))  # values that return the weights
        seen.append(attend_causally(q_BSNH, k_BSNH, identity_BSNZ, segment_BS).mean(axis=2))
        return attend_causally(q_BSNH, k_BSNH, v_BSNH, segment_BS)

    class Observed(Compute):
        @property
        def patterns(self) -> Patterns:
            return Patterns(attend, causally)

    agent = Agent(model, Observed(jnp.dtype(model.dtype), scan=None))
    output: Any = agent.apply({"params": layers_apart(params)}, batch)
    return output.logits_BTK, jnp.stack(seen)


def _occluded(row: Row, frame: int, y: int, x: int, pixels: int) -> Row:
    """The row with a square of one image in the image's mean colour."""
    frames = row["frames_BFHWC"].copy()
    colour = frames[frame].mean(axis=(0, 1)).round().astype(np.uint8)
    frames[frame, y * pixels : (y + 1) * pixels, x * pixels : (x + 1) * pixels] = colour
    return {**row, "frames_BFHWC": frames}


def _by_place(weights_LZ: np.ndarray, row: Row, window: Window, V: int, cells: tuple[int, int, int], block: int
              ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The weights by cell of the images, and their sums by kind of slot."""
    visual_S = row["visual_BS"]
    patch_S, cls_S = (visual_S >= 0) & (visual_S % V > 0), (visual_S >= 0) & (visual_S % V == 0)
    text_S = np.arange(len(visual_S)) < len(window.text_ids)
    layers, (F, G, _) = len(weights_LZ), cells
    patches = np.zeros((layers, F, V - 1))
    place_X = visual_S[patch_S]
    patches[:, place_X // V, place_X % V - 1] = weights_LZ[:, patch_S]
    layers_LFGG = patches.reshape(layers, F, G, block, G, block).sum(axis=(3, 5))
    kinds = {name: weights_LZ[:, mask_S].sum(axis=1) for name, mask_S in (
        ("instruction", text_S), ("patches", patch_S), ("CLS of images", cls_S),
        ("states and earlier actions", ~(text_S | patch_S | cls_S)))}
    return layers_LFGG, kinds


def heat_pictures(images: np.ndarray, heat_FGG: np.ndarray) -> list[str]:
    """Each image in grey with the heat in red, relative to the largest of all images."""
    share_FGG = np.maximum(heat_FGG, 0) / max(float(heat_FGG.max()), 1e-12)
    size, found = images.shape[1], []
    for image, share_GG in zip(images, share_FGG, strict=True):
        scale = size // len(share_GG)
        alpha = 0.8 * np.kron(share_GG, np.ones((scale, scale)))[..., None]
        grey = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1) * 0.5 + image * 0.25 + 50
        found.append(image_uri((grey * (1 - alpha) + _HEAT * alpha).clip(0, 255).astype(np.uint8), _SIDE))
    return found
