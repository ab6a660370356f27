"""The losses against their definitions written out in plain NumPy, and the promise that padding changes not one bit."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_rows import TINY, mixed_batch, quick_jit, random_params, with_garbage

from agent_jax.batch import Batch, RowSize
from agent_jax.config import LossConfig
from agent_jax.models.agent import Agent, AgentOutput, training_visual_tokens
from agent_jax.models.losses import LossSums, loss_sums, loss_weights, means, token_nll, total

DOMAINS = 4  # of which mixed_batch has 0, 1 and 2
PATCHES, HIDDEN = 16, 12  # of TINY
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
FRAME_ALL = TINY
FRAME_VISIBLE = dataclasses.replace(TINY, visual_tokens="visible")
VIDEO_ALL = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, temporal_attention=True))
VIDEO_VISIBLE = dataclasses.replace(VIDEO_ALL, visual_tokens="visible")


@functools.cache
def gradient_step(config):
    """(params, batch, share of mean, share of eq5) -> ((loss, output), gradients), with mask and dropout on."""

    def loss(params, batch, mean, eq5):
        keys_B = jax.vmap(jax.random.key)(batch.seed_B)
        output = Agent(config).apply({"params": params}, batch, mask_keys_B=keys_B, dropout_keys_B=keys_B,
                                     visual_tokens=config.visual_tokens)
        sums, weights = loss_sums(output, batch, DOMAINS), loss_weights(batch, DOMAINS, HIDDEN)
        both = [total(sums, weights, LossConfig(form=form)) for form in ("mean", "eq5")]
        return mean * both[0] + eq5 * both[1], output

    return quick_jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def clean_batch(config):
    return mixed_batch(training_visual_tokens(config))


@functools.cache
def clean_step(config, form):
    mix = (1.0, 0.0) if form == "mean" else (0.0, 1.0)
    return gradient_step(config)(random_params(config), clean_batch(config), *mix)


@pytest.fixture(scope="module")
def batch():
    return clean_batch(FRAME_ALL)


@pytest.fixture(scope="module")
def output():
    """What the agent says of `batch`."""
    return clean_step(FRAME_ALL, "mean")[0][1]


@quick_jit
def both_forms(output, batch, token, language, action, mae):
    """The loss in both forms, the means by domain, and the sums and weights they are made of."""
    sums, weights = loss_sums(output, batch, DOMAINS), loss_weights(batch, DOMAINS, HIDDEN)
    config = {"token": token, "language": language, "action": action, "mae": mae}
    losses = {form: total(sums, weights, LossConfig(form=form, **config)) for form in ("mean", "eq5")}
    return losses, means(sums, weights), sums, weights


def bits(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).view(np.uint32), tree)


# The definitions.


def nll(output, b, t, target):
    """-log p(target), by a softmax written out."""
    logits = np.asarray(output.logits_BTK[b, t, : TINY.language.vocabulary_size], np.float64)
    odds = np.exp(logits - logits.max())
    return -np.log(odds[target] / odds.sum())


def patch_errors(output, batch, b, f):
    """(hidden patches, pixel values): U(V_t) - U(D(E(M(V_t)))) squared, on CLIP-normalised pixels."""
    pixels = (batch.frames_BFHWC[b, f] / 255.0 - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD)
    errors = []
    for place, p in enumerate(np.asarray(output.mask.hide_BFI[b, f])):
        row, column = divmod(int(p), 4)
        patch = pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(-1)
        errors.append((patch - np.asarray(output.predicted_BFIX[b, f, place], np.float64)) ** 2)
    return np.stack(errors)


def used_targets(batch):
    return np.argwhere((batch.language_weight_BT != 0) | (batch.action_weight_BT != 0))


def used_images(batch):
    return np.argwhere(batch.clip_BF >= 0)


def mean_form(output, batch, config):
    """token * mean over instruction and action targets + mae * mean over hidden patches, domain by domain."""
    loss = 0.0
    for domain in range(DOMAINS):
        sums, weights = {"token": 0.0, "mae": 0.0}, {"token": 0.0, "mae": 0.0}
        for b, t in used_targets(batch):
            if batch.domain_BT[b, t] == domain:
                weight = config.language * batch.language_weight_BT[b, t] + config.action * batch.action_weight_BT[b, t]
                sums["token"] += weight * nll(output, b, t, batch.target_BT[b, t])
                weights["token"] += weight
        for b, f in used_images(batch):
            if batch.domain_BF[b, f] == domain:
                for patch in patch_errors(output, batch, b, f):
                    sums["mae"] += batch.frame_weight_BF[b, f] * patch.mean()
                    weights["mae"] += batch.frame_weight_BF[b, f]
        for name, factor in (("token", config.token), ("mae", config.mae)):
            loss += factor * sums[name] / weights[name] if weights[name] else 0.0
    return loss


def samples(batch):
    """(row, segment) -> its targets and images; an image is its sample's by the slots that show it."""
    tokens_an_image = PATCHES + 1
    found = {}
    for b, s in np.argwhere(batch.segment_BS > 0):
        sample = found.setdefault((int(b), int(batch.segment_BS[b, s])), {"targets": set(), "images": set()})
        if batch.visual_BS[b, s] >= 0:
            sample["images"].add(int(batch.visual_BS[b, s]) // tokens_an_image)
    for b, t in used_targets(batch):
        found[int(b), int(batch.segment_BS[b, batch.slot_BT[b, t]])]["targets"].add(int(t))
    return found


def eq5_form(output, batch, config):
    """Mean over samples of (L_lang + L_mae + L_act) / (|W| + sum_t (|V_t| + |A_t|))."""
    losses = []
    for (b, _), sample in samples(batch).items():
        joint = 0.0
        for t in sample["targets"]:
            weight = config.language * batch.language_weight_BT[b, t] + config.action * batch.action_weight_BT[b, t]
            joint += weight * nll(output, b, t, batch.target_BT[b, t])
        for f in sample["images"]:
            joint += config.mae * batch.frame_weight_BF[b, f] * patch_errors(output, batch, b, f).sum()
        losses.append(joint / (len(sample["targets"]) + PATCHES * len(sample["images"])))
    return np.mean(losses)


CONFIGS = [LossConfig(), LossConfig(token=1.0, language=0.3, action=1.7, mae=0.5), LossConfig(mae=0.0),
           LossConfig(token=0.0), LossConfig(language=0.0)]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_both_forms_equal_their_definitions(output, batch, config):
    losses = both_forms(output, batch, config.token, config.language, config.action, config.mae)[0]
    np.testing.assert_allclose(losses["mean"], mean_form(output, batch, config), rtol=1e-5)
    np.testing.assert_allclose(losses["eq5"], eq5_form(output, batch, config), rtol=1e-5)


def test_the_batch_of_these_tests_holds_five_packed_samples_of_three_domains(batch):
    assert len(samples(batch)) == 5
    assert len({len(sample["targets"]) for sample in samples(batch).values()}) > 1
    assert set(batch.domain_BT[tuple(used_targets(batch).T)]) == {0, 1, 2}


def test_the_pixels_to_be_painted_are_clip_normalised_and_of_hidden_patches_only(output, batch):
    for b, f in used_images(batch):
        hidden = np.asarray(output.mask.hide_BFI[b, f])
        assert len(hidden) == HIDDEN
        assert not set(hidden) & set(np.asarray(output.mask.keep_BFJ[b, f]))
        square = (np.asarray(output.predicted_BFIX[b, f]) - np.asarray(output.pixels_BFIX[b, f])) ** 2
        np.testing.assert_allclose(square, patch_errors(output, batch, b, f), rtol=1e-4, atol=1e-4)


def test_hidden_patches_are_hidden_from_the_painter_but_not_from_an_agent_that_reads_all_tokens(output, batch):
    changed = jax.tree.map(np.copy, batch)
    hidden_BFP = np.zeros((*batch.clip_BF.shape, PATCHES), bool)
    np.put_along_axis(hidden_BFP, np.asarray(output.mask.hide_BFI), values=True, axis=2)
    changed.frames_BFHWC[hidden_BFP.reshape(*batch.clip_BF.shape, 4, 4).repeat(4, axis=2).repeat(4, axis=3)] ^= 255
    (_, again), _ = gradient_step(FRAME_ALL)(random_params(FRAME_ALL), changed, 1.0, 0.0)
    np.testing.assert_array_equal(again.predicted_BFIX, output.predicted_BFIX)
    differs_BT = (np.asarray(again.logits_BTK) != np.asarray(output.logits_BTK)).any(axis=-1)
    assert differs_BT[batch.action_weight_BT > 0].all()  # every action follows an image


def test_what_is_logged_is_each_loss_by_domain(output, batch):
    _, logged, _, _ = both_forms(output, batch, 2.0, 1.0, 1.0, 1.0)
    for domain in range(DOMAINS):
        for name in ("language", "action"):
            weight_BT = getattr(batch, f"{name}_weight_BT")
            places = [(b, t) for b, t in used_targets(batch) if batch.domain_BT[b, t] == domain and weight_BT[b, t] > 0]
            weights = np.array([weight_BT[b, t] for b, t in places])
            losses = np.array([nll(output, b, t, batch.target_BT[b, t]) for b, t in places])
            right = np.array([np.argmax(output.logits_BTK[b, t]) == batch.target_BT[b, t] for b, t in places])
            for values, of in ((losses, name), (right, f"{name}_correct")):
                expected = np.sum(values * weights) / weights.sum() if len(weights) else 0.0
                np.testing.assert_allclose(getattr(logged, of)[domain], expected, rtol=1e-5)
        errors = [patch_errors(output, batch, b, f).mean() for b, f in used_images(batch)
                  if batch.domain_BF[b, f] == domain and batch.frame_weight_BF[b, f] > 0]
        np.testing.assert_allclose(logged.mae[domain], np.mean(errors) if errors else 0.0, rtol=1e-5)


def test_a_domain_that_is_absent_adds_nothing_and_is_logged_as_zero(output, batch):
    losses, logged, _, weights = both_forms(output, batch, 2.0, 1.0, 1.0, 1.0)
    chex.assert_tree_all_finite((losses, logged))
    assert all(leaf[3] == 0 for leaf in jax.tree.leaves((logged, weights)))
    moved = dataclasses.replace(batch, **{name: np.where(getattr(batch, name) == 2, 3, getattr(batch, name))
                                          for name in ("domain_BS", "domain_BF", "domain_BT")})
    chex.assert_trees_all_close(both_forms(output, moved, 2.0, 1.0, 1.0, 1.0)[0], losses, rtol=1e-6)


def test_domains_weigh_alike_in_the_mean_form_however_few_targets_they_have(output, batch):
    one = dataclasses.replace(batch, domain_BT=np.zeros_like(batch.domain_BT), domain_BF=np.zeros_like(batch.domain_BF))
    losses = both_forms(output, one, 2.0, 1.0, 1.0, 1.0)[0]
    np.testing.assert_allclose(losses["mean"], mean_form(output, one, LossConfig()), rtol=1e-5)
    apart = both_forms(output, batch, 2.0, 1.0, 1.0, 1.0)[0]
    assert abs(losses["mean"] - apart["mean"]) > 1.0
    np.testing.assert_allclose(losses["eq5"], apart["eq5"], rtol=1e-6)


def test_a_repeated_image_has_no_mae_loss_but_the_same_image_with_weight_has(output, batch):
    def mae(batch):
        losses, _, _, weights = both_forms(output, batch, 0.0, 0.0, 0.0, 1.0)
        return losses, weights

    repeated, weights = mae(batch)
    weight_BF = batch.frame_weight_BF.copy()
    weight_BF[1, 1] = 1.0  # domain 1
    whole = dataclasses.replace(batch, frame_weight_BF=weight_BF)
    counted, whole_weights = mae(whole)
    assert whole_weights.mae[1] - weights.mae[1] == HIDDEN
    share = patch_errors(output, batch, 1, 1).sum() / batch.denominator_BF[1, 1] / len(samples(batch))
    np.testing.assert_allclose(counted["eq5"] - repeated["eq5"], share, rtol=1e-4)
    np.testing.assert_allclose(counted["mean"], mean_form(output, whole, LossConfig(token=0.0)), rtol=1e-5)


def test_the_losses_of_parts_of_a_batch_add_up_to_that_of_the_batch(output, batch):
    losses, _, sums, weights = both_forms(output, batch, 2.0, 1.0, 1.0, 1.0)
    sums_of = quick_jit(lambda rows: loss_sums(*rows, DOMAINS))
    part_sums = [sums_of(jax.tree.map(lambda leaf, first=first: leaf[first::2], (output, batch))) for first in (0, 1)]
    added = functools.reduce(LossSums.__add__, part_sums)
    chex.assert_trees_all_close(added, sums, rtol=1e-6)
    for form, loss in losses.items():
        partial = [total(part, weights, LossConfig(form=form)) for part in part_sums]
        np.testing.assert_allclose(sum(partial), loss, rtol=1e-6)


def test_a_batch_without_any_target_or_image_has_loss_zero(output, batch):
    empty = Batch.padding(RowSize(batch.clip_BF.shape[1], 16, batch.token_BS.shape[1], batch.slot_BT.shape[1]), 4)
    losses, logged, _, _ = both_forms(output, empty, 2.0, 1.0, 1.0, 1.0)
    assert all(leaf.tolist() == 0 for leaf in losses.values())
    assert not any(leaf.any() for leaf in jax.tree.leaves(logged))


def test_without_a_mask_there_is_no_mae_loss_and_the_others_stay(output, batch):
    blind = AgentOutput(output.logits_BTK)
    sums = quick_jit(lambda blind: loss_sums(blind, batch, DOMAINS))(blind)
    full = both_forms(output, batch, 2.0, 1.0, 1.0, 1.0)[2]
    assert not sums.mae.any()
    assert not sums.mae_share.any()
    chex.assert_trees_all_close((sums.language, sums.action_share), (full.language, full.action_share), rtol=1e-6)


def test_nll_stays_finite_where_a_softmax_would_underflow():
    logits_BTK = jnp.array([[[0.0, 200.0, -jnp.inf]]])
    found = token_nll(logits_BTK, jnp.array([[0]]), jnp.array([[1.0]]))
    np.testing.assert_allclose(found, [[200.0]])


def test_nll_and_its_gradient_are_zero_without_weight_whatever_the_target_there():
    targets_BT, weights_BT = jnp.array([[-7, 0, 2, 2**31 - 1]]), jnp.array([[0.0, 0.0, 0.5, 0.0]])
    logits_BTK = jnp.linspace(-1.0, 1.0, 12).reshape(1, 4, 3)
    summed = lambda logits_BTK: jnp.sum(token_nll(logits_BTK, targets_BT, weights_BT))  # noqa: E731
    gradient = quick_jit(jax.grad(summed))(logits_BTK)
    found = quick_jit(token_nll)(logits_BTK, targets_BT, weights_BT)
    np.testing.assert_array_equal(found[0, [0, 1, 3]], 0)
    np.testing.assert_array_equal(gradient[0, [0, 1, 3]], 0)
    assert found[0, 2] > 0
    assert gradient[0, 2].all()


# Padding.


def assert_padding_is_silent(config, form, seed):
    (clean_loss, _), clean_gradients = clean_step(config, form)
    chex.assert_tree_all_finite((clean_loss, clean_gradients))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(clean_gradients))  # else there is nothing to compare
    dirty = with_garbage(clean_batch(config), seed)
    mix = (1.0, 0.0) if form == "mean" else (0.0, 1.0)
    (loss, _), gradients = gradient_step(config)(random_params(config), dirty, *mix)
    chex.assert_trees_all_equal(bits((loss, gradients)), bits((clean_loss, clean_gradients)))


MODELS = [
    pytest.param(FRAME_ALL, id="image-encoder-all"),
    pytest.param(VIDEO_VISIBLE, id="video-encoder-visible"),
    pytest.param(FRAME_VISIBLE, id="image-encoder-visible", marks=pytest.mark.slow),
    pytest.param(VIDEO_ALL, id="video-encoder-all", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("form", ["mean", "eq5"])
@pytest.mark.parametrize("config", MODELS)
def test_whatever_stands_in_padding_changes_no_bit_of_loss_and_gradients(config, form, seed):
    assert_padding_is_silent(config, form, seed)


def test_the_garbage_of_these_tests_reaches_every_field_that_is_not_a_mark(batch):
    clean = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    dirty = with_garbage(batch, 0)
    changed = {name for name, leaf in clean.items() if not np.array_equal(leaf, getattr(dirty, name))}
    assert set(clean) - changed == {"segment_BS", "clip_BF", "language_weight_BT", "action_weight_BT", "seed_B"}
    for name in ("token_BS", "visual_BS", "position_BS", "slot_BT", "target_BT"):
        assert getattr(dirty, name).min() == -(2**31)
        assert getattr(dirty, name).max() == 2**31 - 1


def test_weights_of_a_batch_do_not_read_padding(batch):
    weights = jax.jit(loss_weights, static_argnums=(1, 2))
    for seed in range(3):
        dirty = with_garbage(batch, seed)
        chex.assert_trees_all_equal(bits(weights(dirty, DOMAINS, HIDDEN)), bits(weights(batch, DOMAINS, HIDDEN)))
