import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_rows import TINY, below, beside, mixed_batch, quick_jit, random_params

from agent_jax.batch import Batch, RowSize
from agent_jax.config import LossConfig, ModelConfig, from_config_dict
from agent_jax.config.presets import build, code, paper
from agent_jax.models.agent import Agent, AgentOutput, init_params, training_visual_tokens
from agent_jax.models.language import LanguageModel
from agent_jax.models.losses import loss_sums, loss_weights, token_nll, total
from agent_jax.models.vision import patchify

VIDEO = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, temporal_attention=True))
VISIBLE = dataclasses.replace(TINY, visual_tokens="visible")
V, SLOTS, TARGETS = 17, 48, 16  # of one sample: 4 words, image, 5 tokens, image, 5 tokens
SECOND_IMAGE = 26  # its first slot
REAL = TINY.language.vocabulary_size


@functools.cache
def reader():
    """The unmasked agent, on rows of two samples and padding: long enough to be attended in two blocks."""
    return quick_jit(lambda params, batch: Agent(VIDEO).apply({"params": params}, batch).logits_BTK)


def read(batch):
    return np.asarray(reader()(random_params(VIDEO), batch))


@functools.cache
def masked_reader(dtype="float32"):
    config = dataclasses.replace(VISIBLE, dtype=dtype)
    return quick_jit(lambda params, batch, keys_B: Agent(config).apply(
        {"params": params}, batch, mask_keys_B=keys_B, visual_tokens="visible"))


@functools.cache
def row_reader():
    """(params, batch, visual_BFVD) -> logits, for visual tokens of our own making."""
    return quick_jit(lambda params, batch, visual_BFVD: Agent(VIDEO).apply(
        {"params": params}, batch, visual_BFVD, method="read_row"))


def sample(seed, clip_length=1):
    size = RowSize(frames=2, image_size=16, slots=SLOTS, targets=TARGETS)
    return Batch.fake(size, 1, visual_tokens=V, vocabulary_size=REAL, clip_length=clip_length, seed=seed)


def nothing(slots=SLOTS):
    return Batch.padding(RowSize(frames=2, image_size=16, slots=slots, targets=TARGETS), 1)


def row(*parts):
    return beside(*parts, nothing(32), visual_tokens=V)


IMAGES, CLIP = functools.partial(sample, 1), functools.partial(sample, 2, clip_length=2)


@pytest.fixture(scope="module")
def rows():
    """Two samples packed, each alone where it stood, and packed the other way round."""
    return below(row(IMAGES(), CLIP()), row(IMAGES(), nothing()), row(nothing(), CLIP()), row(CLIP(), IMAGES()))


@pytest.fixture(scope="module")
def logits(rows):
    return read(rows)


@pytest.fixture(scope="module")
def masked():
    """(params, batch, keys, output) of the agent that reads visible tokens only."""
    params, batch = random_params(VISIBLE), mixed_batch(training_visual_tokens(VISIBLE))
    keys_B = jax.vmap(jax.random.key)(batch.seed_B)
    return params, batch, keys_B, masked_reader()(params, batch, keys_B)


def weighted(batch):
    return (batch.language_weight_BT > 0) | (batch.action_weight_BT > 0)


def real(logits):
    return logits[..., :REAL]


# The row.


def test_samples_packed_into_one_row_read_as_they_do_alone(logits):
    first, second = slice(0, TARGETS), slice(TARGETS, 2 * TARGETS)
    used = weighted(IMAGES())[0]
    together = real(logits[0])
    np.testing.assert_allclose(together[first][used], real(logits[1])[first][used], atol=1e-5)
    np.testing.assert_allclose(together[first][used], real(logits[3])[second][used], atol=1e-5)
    used = weighted(CLIP())[0]
    np.testing.assert_allclose(together[second][used], real(logits[2])[second][used], atol=1e-5)
    np.testing.assert_allclose(together[second][used], real(logits[3])[first][used], atol=1e-5)


def test_another_sample_of_the_row_changes_not_one_bit(rows, logits):
    changed = jax.tree.map(np.copy, rows)
    changed.token_BS[:, :SLOTS] = (changed.token_BS[:, :SLOTS] + 7) % REAL
    changed.frames_BFHWC[:, :2] ^= 255
    again, second = read(changed), slice(TARGETS, 2 * TARGETS)
    assert not np.array_equal(again[0, :TARGETS], logits[0, :TARGETS])
    np.testing.assert_array_equal(again[0, second], logits[0, second])


@pytest.mark.parametrize("cut", [2, 4 + V + 2, SECOND_IMAGE, SLOTS - 2], ids="slot {}".format)
def test_future_slots_do_not_change_past_logits(rows, logits, cut):
    changed = jax.tree.map(np.copy, rows)
    words_S = (rows.visual_BS[0] < 0) & (np.arange(rows.visual_BS.shape[1]) >= cut)
    changed.token_BS[:, words_S] = (changed.token_BS[:, words_S] + 7) % REAL
    for f, first_slot in enumerate((4, SECOND_IMAGE)):
        if first_slot >= cut:
            changed.frames_BFHWC[:, f] ^= 255
    again = read(changed)
    used = weighted(rows)[0, :TARGETS]
    past = used & (rows.slot_BT[0, :TARGETS] < cut)
    assert past.any()
    np.testing.assert_array_equal(again[0, :TARGETS][past], logits[0, :TARGETS][past])
    future = used & (rows.slot_BT[0, :TARGETS] >= cut)
    assert (again[0, :TARGETS] != logits[0, :TARGETS])[future].any(axis=-1).all()


def test_a_visual_slot_reads_the_token_that_its_index_names(rows):
    # Visual tokens that are word embeddings: a row that shows them must read like the row of those words.
    params = random_params(VIDEO)
    words_BFV = np.random.default_rng(0).integers(0, REAL, (*rows.clip_BF.shape, V))
    visual_BFVD = params["language"]["token_embedding"][words_BFV]
    shown = rows.visual_BS >= 0
    named_BS = np.take_along_axis(words_BFV.reshape(4, -1), np.maximum(rows.visual_BS, 0), axis=1)
    spelled = dataclasses.replace(rows, visual_BS=np.full_like(rows.visual_BS, -1),
                                  token_BS=np.where(shown, named_BS, rows.token_BS).astype(np.int32))
    found = row_reader()(params, rows, visual_BFVD)
    np.testing.assert_array_equal(found, row_reader()(params, spelled, np.zeros_like(visual_BFVD)))


def test_what_token_stands_beneath_a_visual_slot_does_not_matter(rows, logits):
    changed = dataclasses.replace(rows, token_BS=np.where(rows.visual_BS >= 0, 13, rows.token_BS).astype(np.int32))
    np.testing.assert_array_equal(read(changed), logits)


def test_two_cameras_of_one_step_may_be_stored_in_any_order(rows, logits):
    swapped = jax.tree.map(np.copy, rows)
    swapped.frames_BFHWC[:, :2] = rows.frames_BFHWC[:, [1, 0]]
    assert not np.array_equal(read(swapped)[0, :TARGETS], logits[0, :TARGETS])
    index = rows.visual_BS[:, :SLOTS]
    swapped.visual_BS[:, :SLOTS] = np.where(index < 0, -1, (1 - index // V) * V + index % V)
    used = weighted(rows)[0]
    np.testing.assert_allclose(real(read(swapped)[0])[used], real(logits[0])[used], atol=1e-5)


def test_the_slot_that_predicts_is_the_one_that_the_target_names(rows, logits):
    moved = dataclasses.replace(rows, slot_BT=rows.slot_BT[:, ::-1].copy())
    np.testing.assert_allclose(real(read(moved)), real(logits)[:, ::-1], atol=1e-5)


# The mask.


def test_visible_tokens_are_exactly_those_of_the_masked_pass_in_raster_order(masked):
    params, batch, _, output = masked
    assert (np.diff(output.mask.keep_BFJ) > 0).all()

    def by_hand(agent, batch, keep_BFJ):
        tokens_BFVD, _ = agent.vision(patchify(batch.frames_BFHWC, TINY.vision.patch_size), batch.clip_BF, keep_BFJ)
        return agent.read_row(batch, agent.connector(tokens_BFVD))

    expected = quick_jit(nn.apply(by_hand, Agent(VISIBLE)))({"params": params}, batch, np.sort(output.mask.keep_BFJ))
    np.testing.assert_allclose(real(output.logits_BTK), real(expected), atol=1e-5)


def test_hidden_pixels_reach_neither_the_words_nor_the_painting(masked):
    params, batch, keys_B, output = masked
    changed = jax.tree.map(np.copy, batch)
    hidden_BFP = np.zeros((*batch.clip_BF.shape, 16), bool)
    np.put_along_axis(hidden_BFP, np.asarray(output.mask.hide_BFI), values=True, axis=2)
    pixels_BFHW = hidden_BFP.reshape(*batch.clip_BF.shape, 4, 4).repeat(4, axis=2).repeat(4, axis=3)
    changed.frames_BFHWC[pixels_BFHW] ^= 255
    again = masked_reader()(params, changed, keys_B)
    np.testing.assert_array_equal(again.logits_BTK, output.logits_BTK)
    np.testing.assert_array_equal(again.predicted_BFIX, output.predicted_BFIX)
    assert (np.asarray(again.pixels_BFIX) != np.asarray(output.pixels_BFIX)).mean() > 0.99
    changed.frames_BFHWC[~pixels_BFHW] ^= 255
    again = masked_reader()(params, changed, keys_B)
    used = batch.action_weight_BT > 0  # every action follows an image
    assert (np.asarray(again.logits_BTK) != np.asarray(output.logits_BTK))[used].any(axis=-1).all()


def test_visible_tokens_without_a_mask_are_refused(rows):
    with pytest.raises(ValueError, match='visual_tokens="visible" needs mask_keys_B'):
        jax.eval_shape(lambda: Agent(VISIBLE).apply({"params": random_params(VISIBLE)}, rows, visual_tokens="visible"))


@pytest.mark.parametrize(("config", "count"), [(ModelConfig(), 197), (ModelConfig(visual_tokens="visible"), 50)])
def test_training_rows_hold_197_visual_tokens_an_image_or_the_visible_50(config, count):
    assert training_visual_tokens(config) == count


# The vocabulary.


def test_padded_vocabulary_rows_have_logits_of_minus_infinity_and_only_those(logits):
    assert logits.shape[-1] == 64
    assert (logits[..., REAL:] == -np.inf).all()
    assert np.isfinite(real(logits)).all()
    assert not np.asarray(jax.nn.softmax(logits))[..., REAL:].any()


def test_padded_vocabulary_rows_receive_no_gradient():
    language = LanguageModel(TINY.language)
    params = random_params(TINY)["language"]
    hidden_BTD = np.random.default_rng(0).standard_normal((2, 5, TINY.language.width)).astype(np.float32)

    def loss(params):
        logits_BTK = language.apply({"params": params}, hidden_BTD, method="logits")
        return jnp.sum(token_nll(logits_BTK, jnp.full((2, 5), REAL - 1), jnp.ones((2, 5))))

    gradient = quick_jit(jax.grad(loss))(params)["token_embedding"]
    chex.assert_tree_all_finite(gradient)
    assert np.abs(gradient[:REAL]).min() > 0
    assert not gradient[REAL:].any()


# Precision.


def test_bf16_compute_gives_f32_outputs_close_to_those_of_f32(masked):
    params, batch, keys_B, output = masked
    coarse = masked_reader("bfloat16")(params, batch, keys_B)
    chex.assert_trees_all_equal_shapes_and_dtypes(coarse, output)
    chex.assert_type([coarse.logits_BTK, coarse.predicted_BFIX, coarse.pixels_BFIX], jnp.float32)
    chex.assert_trees_all_equal(coarse.mask, output.mask)
    # bf16 rounds by up to 2^-9. Errors of the dozen roundings on the way add up like a random walk, and values are of
    # order 1: 1% of the standard deviation on average, and no single one beyond 10%.
    for name in ("logits_BTK", "predicted_BFIX"):
        fine, found = (np.asarray(getattr(of, name))[..., :REAL] for of in (output, coarse))  # a patch has 48 values
        error = np.abs(fine - found) / np.std(fine)
        assert 0 < error.mean() < 0.01
        assert error.max() < 0.1


# Parameters and presets.


@pytest.fixture(scope="module")
def initialise():
    return quick_jit(functools.partial(init_params, VIDEO))


def test_fresh_parameters_follow_the_key_and_nothing_else(initialise):
    first, again, other = (initialise(jax.random.key(seed)) for seed in (3, 3, 4))
    chex.assert_trees_all_equal(first, again)
    fresh = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda a, b: not np.array_equal(a, b), first, other))
    drawn = {path[-1].key for path, differs in fresh if differs}
    assert drawn == {"kernel", "class_embedding", "token_embedding", "position_embedding", "mask_token"}


def test_fresh_parameters_have_the_spread_that_the_config_says(initialise):
    params = initialise(jax.random.key(0))
    language = params["language"]
    np.testing.assert_allclose(np.std(language["token_embedding"]), TINY.language.token_std, rtol=0.1)
    np.testing.assert_allclose(np.std(language["position_embedding"]), TINY.language.position_std, rtol=0.1)
    qkv_LD3D = np.asarray(language["blocks"]["attention"]["qkv"]["kernel"])
    bound = np.sqrt(6 / (12 + 12))  # Xavier of one 12 x 12 matrix, not of the fused 12 x 36
    assert 0.9 * bound < np.abs(qkv_LD3D).max() <= bound
    assert len(np.unique(qkv_LD3D)) == qkv_LD3D.size  # layers, and q, k and v, are drawn apart
    assert not np.any(params["vision"]["blocks"]["temporal_attention"]["out"]["kernel"])


def test_parameters_are_a_plain_dict_whose_shapes_cost_nothing(initialise):
    abstract = jax.eval_shape(functools.partial(init_params, VIDEO), jax.random.key(0))
    assert type(abstract) is dict
    assert set(abstract) == {"vision", "connector", "language", "mae"}
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, initialise(jax.random.key(0)))


@pytest.mark.parametrize(("preset", "tokens", "form"), [(paper, 197, "eq5"), (code, 50, "mean")])
def test_the_full_size_presets_have_a_loss_and_gradients(preset, tokens, form):
    config = from_config_dict(build("", {"": [preset]}))
    language = dataclasses.replace(config.model.language, vocabulary_size=51_578)
    model = dataclasses.replace(config.model, language=language)
    assert (training_visual_tokens(model), config.loss.form) == (tokens, form)
    slots = 32 + 4 * (tokens + 12)  # four steps of Language-Table
    batch = Batch.spec(RowSize(frames=4, image_size=224, slots=slots, targets=48), 2)
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))

    def loss(params, batch, keys_B):
        output: AgentOutput = Agent(model).apply({"params": params}, batch, mask_keys_B=keys_B, dropout_keys_B=keys_B,
                                                 visual_tokens=model.visual_tokens)
        return total(loss_sums(output, batch, 1), loss_weights(batch, 1, 147), config.loss), output

    (value, output), gradients = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), params, batch, keys_B)
    assert (value.shape, value.dtype) == ((), jnp.float32)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradients, params)
    assert ("position_embedding" in params["vision"]) == (preset is code)
    assert output.logits_BTK.shape == (2, 48, 51_584)
    assert output.predicted_BFIX.shape == output.pixels_BFIX.shape == (2, 4, 147, 768)


def test_presets_differ_from_the_default_loss_as_the_code_and_the_paper_do():
    assert from_config_dict(build("", {"": [code]})).loss == LossConfig(form="mean", token=2.0, mae=1.0)
    assert from_config_dict(build("", {"": [paper]})).loss == LossConfig(form="eq5")
