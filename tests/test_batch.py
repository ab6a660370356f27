import dataclasses

import chex
import jax
import numpy as np
import pytest

from agent_jax.batch import PADDING_CLIP, Batch, RowSize

SIZE = RowSize(frames=4, image_size=8, slots=40, targets=16)
V = 5  # visual tokens of an image

DTYPES = {
    "frames_BFHWC": "uint8", "frame_weight_BF": "float32", "clip_BF": "int32", "token_BS": "int32",
    "visual_BS": "int32", "segment_BS": "int32", "position_BS": "int32", "slot_BT": "int32", "target_BT": "int32",
    "language_weight_BT": "float32", "action_weight_BT": "float32", "choice_BT": "int32", "denominator_BT": "float32",
    "denominator_BF": "float32", "domain_BS": "int32", "domain_BF": "int32", "domain_BT": "int32", "seed_B": "uint32",
    "label_B": "int32",
}
SHAPES = {"BFHWC": (3, 4, 8, 8, 3), "BF": (3, 4), "BS": (3, 40), "BT": (3, 16), "B": (3,)}


def fake(**changes) -> Batch:
    return Batch.fake(SIZE, 3, **{"visual_tokens": V, "vocabulary_size": 11, **changes})


def fields(batch: Batch) -> dict:
    return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}


def test_the_fields_and_dtypes_of_a_batch_are_frozen():
    assert {name: leaf.dtype.name for name, leaf in fields(Batch.spec(SIZE, 3)).items()} == DTYPES


def test_every_field_has_the_shape_of_its_suffix():
    assert {name: leaf.shape for name, leaf in fields(Batch.spec(SIZE, 3)).items()} == {
        name: SHAPES[name.rsplit("_", 1)[1]] for name in DTYPES}


@pytest.mark.parametrize("make", [lambda: Batch.padding(SIZE, 3), fake, lambda: fake(clip_length=2, domains=2)])
def test_padding_and_fake_batches_match_the_spec(make):
    spec = Batch.spec(SIZE, 3)
    chex.assert_trees_all_equal_shapes_and_dtypes(make(), spec)
    assert all(isinstance(leaf, np.ndarray) for leaf in fields(make()).values())


def test_a_batch_is_a_pytree_of_its_fields():
    batch = fake()
    leaves, structure = jax.tree.flatten(batch)
    assert len(leaves) == len(DTYPES)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert isinstance(rebuilt, Batch)
    assert all(rebuilt_leaf is leaf for rebuilt_leaf, leaf in zip(fields(rebuilt).values(), leaves, strict=True))
    paths = {jax.tree_util.keystr(path, simple=True) for path, _ in jax.tree_util.tree_leaves_with_path(batch)}
    assert paths == set(DTYPES)


def test_a_batch_passes_through_jit_with_its_dtypes():
    batch = fake()
    chex.assert_trees_all_equal(jax.jit(lambda batch: batch)(batch), batch, strict=True)


def test_a_batch_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        fake().token_BS = np.zeros((3, 40), np.int32)


def test_rows_counts_rows():
    assert fake().rows == 3
    assert Batch.spec(SIZE, 7).rows == 7


def test_padding_has_no_samples_and_no_weights():
    batch = Batch.padding(SIZE, 3)
    assert (batch.segment_BS == 0).all()
    assert (batch.clip_BF == PADDING_CLIP).all()
    assert (batch.visual_BS == -1).all()
    assert (batch.label_B == -1).all()
    assert not batch.language_weight_BT.any()
    assert not batch.action_weight_BT.any()
    assert not batch.frame_weight_BF.any()
    assert (batch.denominator_BT == 1).all()
    assert (batch.denominator_BF == 1).all()


def test_padding_batches_share_no_memory():
    first, second = Batch.padding(SIZE, 1), Batch.padding(SIZE, 1)
    for leaf in fields(first).values():
        leaf[...] = 1
    chex.assert_trees_all_equal(second, Batch.padding(SIZE, 1))


@pytest.mark.parametrize("clip_length", [1, 2, 4])
def test_a_fake_row_has_every_visual_token_once_in_order_and_one_cls_a_clip(clip_length):
    batch = fake(clip_length=clip_length)
    for visual_S in batch.visual_BS:
        shown = visual_S[visual_S >= 0]
        expected = [f * V + v for f in range(4) for v in range(V) if v > 0 or f % clip_length == 0]
        np.testing.assert_array_equal(shown, expected)
    np.testing.assert_array_equal(batch.clip_BF[0], np.arange(4) // clip_length)


def test_a_fake_target_is_the_token_of_the_next_slot_in_exactly_one_loss():
    batch = fake()
    language, action = batch.language_weight_BT, batch.action_weight_BT
    used = language + action > 0
    assert (language[used] + action[used] == 1).all()
    for loss in (language, action):
        assert loss.any()
    rows, targets = np.nonzero(used)
    slots = batch.slot_BT[rows, targets]
    np.testing.assert_array_equal(batch.target_BT[rows, targets], batch.token_BS[rows, slots + 1])
    assert (batch.visual_BS[rows, slots + 1] == -1).all()
    assert batch.token_BS.min() >= 0
    assert batch.token_BS.max() < 11
    assert not batch.token_BS[batch.visual_BS >= 0].any()


def test_a_fake_denominator_is_that_of_equation_5():
    batch = fake()
    words, actions = batch.language_weight_BT.sum(axis=1), batch.action_weight_BT.sum(axis=1)
    expected = words + 4 * (V - 1) + actions  # |W| + sum over four images of |V_t|, without CLS, + |A|
    np.testing.assert_array_equal(batch.denominator_BT, np.broadcast_to(expected[:, None], (3, 16)))
    np.testing.assert_array_equal(batch.denominator_BF, np.broadcast_to(expected[:, None], (3, 4)))


def test_fake_rows_cycle_through_the_domains():
    batch = fake(domains=2)
    for leaf in (batch.domain_BS, batch.domain_BF, batch.domain_BT):
        np.testing.assert_array_equal(leaf[:, 0], [0, 1, 0])
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:, :1], leaf.shape))


def test_a_fake_batch_depends_on_its_seed():
    chex.assert_trees_all_equal(fake(seed=4), fake(seed=4))
    assert not np.array_equal(fake(seed=4).token_BS, fake(seed=5).token_BS)
    assert len(set(fake().seed_B.tolist())) == 3


@pytest.mark.parametrize(("slots", "room"), [(21, 1), (20, 0), (12, -8)])
def test_a_fake_row_too_short_for_its_images_is_refused(slots, room):
    with pytest.raises(ValueError, match=f"slots={slots}: found room for {room} tokens"):
        Batch.fake(dataclasses.replace(SIZE, slots=slots), 1, visual_tokens=V, vocabulary_size=11)


def test_the_shortest_fake_row_has_one_target():
    batch = Batch.fake(dataclasses.replace(SIZE, slots=22), 1, visual_tokens=V, vocabulary_size=11)
    assert np.count_nonzero(batch.language_weight_BT + batch.action_weight_BT) == 1


def test_a_fake_row_has_at_most_the_targets_of_its_size():
    batch = fake()
    short = Batch.fake(dataclasses.replace(SIZE, targets=4), 3, visual_tokens=V, vocabulary_size=11)
    np.testing.assert_array_equal(short.slot_BT, batch.slot_BT[:, :4])
    assert (short.language_weight_BT + short.action_weight_BT == 1).all()
