"""The loss of a clip's class: its definition, what has none, and the head that it trains."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_rows import TINY, below, mixed_batch, quick_jit, random_params, with_garbage

from agent_jax.batch import Batch, RowSize
from agent_jax.config import LossConfig
from agent_jax.models.agent import Agent, init_params
from agent_jax.models.losses import loss_sums, loss_weights, total
from agent_jax.models.vision import patchify
from agent_jax.train.metrics import LABEL_LOSSES, LOSSES, mean_losses

CLASSES, V, HIDDEN = 5, 17, 12
HEADED = dataclasses.replace(TINY, classes=CLASSES)
VIDEO = dataclasses.replace(HEADED, vision=dataclasses.replace(TINY.vision, temporal_attention=True))
LABELS = [3, 0, -1, 4]  # row 2 has none; row 3 holds nothing


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Rows 0 and 1 hold images of their own, or a clip first; row 3 is padding, and its label counts for nothing."""
    return dataclasses.replace(mixed_batch(V), label_B=np.asarray(LABELS, np.int32))


@quick_jit
def apply(params, batch):
    return Agent(HEADED).apply({"params": params}, batch)


@quick_jit
def both(output, batch, weight):
    sums, weights = loss_sums(output, batch, 4), loss_weights(batch, 4, HIDDEN, classes=True)
    return {form: total(sums, weights, LossConfig(form=form, label=weight)) for form in ("mean", "eq5")}, sums, weights


def test_the_head_computes_in_the_wider_of_the_models_type_and_f32(batch):
    model = dataclasses.replace(HEADED, dtype="float64")
    with jax.enable_x64():
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), random_params(HEADED))
        tokens_BFVD = np.random.default_rng(0).normal(size=(4, 2, V, HEADED.vision.width))
        clip_BF = np.asarray([[0, 0], [0, 1], [0, 0], [0, 1]], np.int32)
        classes_BY: Any = Agent(model).apply({"params": params}, tokens_BFVD, clip_BF, method="classify")
    assert classes_BY.dtype == np.float64
    mean_BD = np.stack([tokens_BFVD[b, clip_BF[b] == 0, 0].mean(axis=0) for b in range(4)])
    expected_BY = mean_BD @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(classes_BY, expected_BY, rtol=0, atol=1e-12)
    half = Agent(dataclasses.replace(HEADED, dtype="bfloat16"))
    rounded: Any = half.apply({"params": random_params(HEADED)}, tokens_BFVD.astype(jnp.bfloat16), clip_BF,
                         method="classify")
    assert rounded.dtype == np.float32


def test_the_loss_of_labels_is_their_mean_cross_entropy_by_domain(batch):
    output = apply(random_params(HEADED), batch)
    (with_label, sums, weights), (without, _, _) = both(output, batch, 0.7), both(output, batch, 0.0)
    logits = np.asarray(output.classes_BY, np.float64)
    nll = [np.log(np.exp(logits[b]).sum()) - logits[b, LABELS[b]] for b in (0, 1)]
    assert batch.domain_BF[:2, 0].tolist() == [0, 1]
    np.testing.assert_allclose(sums.label, [*nll, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(weights.label, [1, 1, 0, 0])
    np.testing.assert_array_equal(sums.label_correct, [*(np.argmax(logits[b]) == LABELS[b] for b in (0, 1)), 0, 0])
    np.testing.assert_allclose(with_label["mean"] - without["mean"], 0.7 * sum(nll), rtol=1e-4)
    np.testing.assert_allclose(with_label["eq5"] - without["eq5"], 0.7 * sum(nll) / 2, rtol=1e-4)
    losses, by_domain = mean_losses(sums, weights, ["a", "b", "c", "d"], classes=True)
    assert [*losses] == [*LOSSES, *LABEL_LOSSES]
    assert losses["label"] == pytest.approx(sum(nll) / 2, rel=1e-5)
    assert math.isnan(by_domain["d"]["label"])
    assert [*mean_losses(sums, weights, ["a"] * 4)[0]] == [*LOSSES]


def test_whatever_stands_in_padding_changes_neither_the_loss_of_labels_nor_their_logits(batch):
    params = random_params(HEADED)
    clean, dirty = (both(apply(params, rows), rows, 1.0) for rows in (batch, with_garbage(batch, 4)))
    jax.tree.map(np.testing.assert_array_equal, clean[1].label, dirty[1].label)
    jax.tree.map(np.testing.assert_array_equal, clean[2].label, dirty[2].label)


def test_a_batch_without_labels_has_no_loss_of_them_and_no_gradient_at_their_logits(batch):
    unlabelled = dataclasses.replace(batch, label_B=np.full(4, -1, np.int32))

    output = apply(random_params(HEADED), batch)

    def loss(classes_BY, rows):
        sums = loss_sums(dataclasses.replace(output, classes_BY=classes_BY), rows, 4)
        return total(sums, loss_weights(rows, 4, HIDDEN, classes=True), LossConfig())

    gradient = quick_jit(jax.value_and_grad(loss))
    (value, none), (_, some) = (gradient(output.classes_BY, rows) for rows in (unlabelled, batch))
    assert np.isfinite(value)
    np.testing.assert_array_equal(none, np.zeros_like(none))
    assert [bool(row.any()) for row in np.asarray(some)] == [True, True, False, False]


def test_the_head_reads_the_class_token_of_the_first_clip_alone():
    size = RowSize(frames=4, image_size=16, slots=4 * V + 4, targets=4)
    clip = Batch.fake(size, 1, visual_tokens=V, vocabulary_size=50, clip_length=2, seed=1)
    second, first = (jax.tree.map(np.copy, clip) for _ in range(2))
    second.frames_BFHWC[:, 2:] ^= 255
    first.frames_BFHWC[:, 1] ^= 255
    params = random_params(VIDEO)
    rows = below(clip, second, first)
    output = quick_jit(lambda batch: Agent(VIDEO).apply({"params": params}, batch))(rows)
    tokens_BFVD, _ = quick_jit(lambda batch: Agent(VIDEO).apply({"params": params}, batch, method=lambda agent, batch:
                               agent.vision(patches_of(batch), batch.clip_BF)))(rows)
    np.testing.assert_allclose(tokens_BFVD[0, 0, 0], tokens_BFVD[0, 1, 0], atol=1e-5)  # copies of one
    expected_BY = np.asarray(tokens_BFVD)[:, 0, 0] @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(output.classes_BY, expected_BY, atol=1e-4)
    np.testing.assert_allclose(output.classes_BY[0], output.classes_BY[1], atol=1e-6)
    assert np.abs(output.classes_BY[0] - output.classes_BY[2]).max() > 1e-3


def patches_of(batch: Batch) -> jax.Array:
    return patchify(jnp.asarray(batch.frames_BFHWC), TINY.vision.patch_size)


def test_the_head_is_a_linear_layer_and_the_only_parameters_that_classes_add():
    shapes, plain = (jax.eval_shape(lambda config=config: init_params(config, jax.random.key(0)))
                     for config in (HEADED, TINY))
    assert {name: leaf.shape for name, leaf in shapes.pop("classifier").items()} == {
        "kernel": (TINY.vision.width, CLASSES), "bias": (CLASSES,)}
    assert shapes == plain
